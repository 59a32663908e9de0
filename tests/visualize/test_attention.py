"""``attention_map``, against rows of the attention matrix and against the outputs of blocks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nonlocal_jax as nlj
from nonlocal_jax.blocks import DisentangledNonLocalBlock, NonLocalBlock
from nonlocal_jax.errors import InputError
from nonlocal_jax.visualize import attention_map
from tests.helpers import TINY, random_variables


class Network(nn.Module):
    """A block on features at half the resolution of an image or a clip."""

    block: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.block(nn.Dense(8)(x[..., ::2, ::2, :]))


def attention_matrix(query, key):
    logits = np.einsum("...c,jc->...j", query, key.reshape(-1, key.shape[-1]))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def run(block, shape):
    """A network with this block, its variables, an input and the recorded queries and keys."""
    model = Network(block)
    # Bright enough for an attention that is far from uniform.
    inputs = 5 * jax.random.normal(jax.random.key(1), shape)
    variables = jax.tree.map(lambda x: 40 * x, jax.jit(model.init)(jax.random.key(0), inputs))
    apply = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))
    _, recorded = apply(variables, inputs)
    recorded = recorded["intermediates"]["block"]
    return model, variables, inputs, recorded["query"][0][0], recorded["key"][0][0]


@pytest.mark.parametrize("block", [NonLocalBlock, DisentangledNonLocalBlock])
def test_the_map_of_an_image_is_a_row_of_the_attention_matrix(block):
    model, variables, images, query, key = run(block(norm=None), (1, 18, 24, 3))
    found = attention_map(model, variables, images, (13, 7))
    expected = attention_matrix(query[6, 3], key).reshape(9, 12)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert np.abs(found - 1 / found.size).max() > 1e-3


def test_the_map_of_a_clip_with_pooled_keys():
    block = NonLocalBlock(norm=None, sub_sample=True)
    model, variables, clips, query, key = run(block, (1, 4, 18, 24, 3))
    found = attention_map(model, variables, clips, (2, 13, 7))
    expected = attention_matrix(query[2, 6, 3], key).reshape(4, 4, 6)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "related"),
    [
        ({"axes": "space"}, np.s_[2]),
        ({"axes": "time"}, np.s_[:, 2, 0]),
        ({"frames": 2}, np.s_[2:4]),
    ],
)
def test_positions_that_a_block_does_not_relate_have_no_weight(options, related):
    model, variables, clips, query, key = run(NonLocalBlock(norm=None, **options), (1, 4, 6, 8, 3))
    found = attention_map(model, variables, clips, (2, 5, 1))
    expected = np.zeros((4, 3, 4))
    keys = key[related]
    expected[related] = attention_matrix(query[2, 2, 0], keys).reshape(keys.shape[:-1])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_a_model_with_several_blocks_needs_the_path_of_one():
    config = {**TINY, "block": "nonlocal", "block_at": ("layer1.0", "layer2.0")}
    model, variables = nlj.create_model(config), random_variables(config)
    images = jax.random.normal(jax.random.key(1), (1, 16, 16, 3))
    with pytest.raises(InputError, match="several blocks; set block to ") as error:
        attention_map(model, variables, images, (0, 0))
    paths = str(error.value).split(" set block to ")[1].split(" or ")
    maps = [attention_map(model, variables, images, (0, 0), path) for path in paths]
    assert len(maps) >= 2
    assert np.abs(maps[0] - maps[1]).max() > 1e-4
    with pytest.raises(InputError, match="no block 'head'; set block to "):
        attention_map(model, variables, images, (0, 0), "head")


@pytest.mark.parametrize("options", [{"block": "global_context"}, {"block": "none"}])
def test_a_model_without_a_non_local_block_is_refused(options):
    config = {**TINY, "block": "nonlocal", **options}
    model, variables = nlj.create_model(config), random_variables(config)
    with pytest.raises(InputError, match="no block of the model has a separate attention map"):
        attention_map(model, variables, jnp.zeros((1, 16, 16, 3)), (0, 0))


@pytest.mark.parametrize(
    ("shape", "position", "order"),
    [
        ((1, 33, 48, 3), (33, 0), "(row, column) from (0, 0) to (32, 47)"),
        ((1, 33, 48, 3), (0, -1), "(row, column) from (0, 0) to (32, 47)"),
        ((1, 4, 33, 48, 3), (0, 0), "(frame, row, column) from (0, 0, 0) to (3, 32, 47)"),
        ((1, 7, 3), (7,), "(index,) from (0,) to (6,)"),
    ],
)
def test_a_position_outside_of_the_input_is_refused(shape, position, order):
    with pytest.raises(InputError) as error:
        attention_map(None, {}, jnp.zeros(shape), position)
    assert str(error.value).endswith(f"outside the input; use {order}")


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (32, 32, 3), (1, 32)])
def test_inputs_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(InputError) as error:
        attention_map(None, {}, jnp.zeros(shape), (0, 0))
    assert str(error.value).startswith(f"inputs have the shape {shape}; use")


def make_block(shape, **options):
    """A block without a norm, its variables and a feature map, whose attention is not uniform."""
    block = NonLocalBlock(norm=None, **options)
    x = jax.random.normal(jax.random.key(1), shape)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x)
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(4), len(leaves))
    leaves = [jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    return block, jax.tree.unflatten(tree, leaves), x


def branch_of(weights, variables, x):
    """The branch of a block at the position with these weights, W sum_j w_j g_j."""
    g, out = (variables["params"][name] for name in ("g", "conv_out"))
    values = np.asarray(x[0]) @ np.asarray(g["kernel"]) + np.asarray(g["bias"])
    y = weights.reshape(-1) @ values.reshape(weights.size, -1)
    return y @ np.asarray(out["kernel"]) + np.asarray(out["bias"])


MODES = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")


@pytest.mark.parametrize(
    ("mode", "axes", "shape", "masked"),
    [
        *[(mode, "spacetime", (1, 4, 5, 6), masked) for mode in MODES for masked in (False, True)],
        *[(mode, axes, (1, 9, 4, 5, 6), True) for mode in MODES[1:] for axes in ("space", "time")],
        ("dot_product", "spacetime", (1, 9, 6), False),
    ],
)
def test_the_weights_give_the_output_of_the_block(mode, axes, shape, masked):
    block, variables, x = make_block(shape, mode=mode, axes=axes)
    position = tuple(n // 2 for n in shape[1:-1])
    mask = None
    if masked:
        mask = jax.random.bernoulli(jax.random.key(3), 0.6, shape[:-1]).at[0, *position].set(True)
    weights = attention_map(block, variables, x, position, mask=mask)
    assert weights.shape == shape[1:-1]
    expected = (jax.jit(block.apply)(variables, x, mask=mask) - x)[0][position]
    np.testing.assert_allclose(branch_of(weights, variables, x), expected, rtol=1e-3, atol=1e-4)
    if masked:
        assert not weights[~np.asarray(mask[0])].any()
        assert weights.any()
    if "gaussian" in mode:
        assert weights.sum() == pytest.approx(1, abs=1e-6)
    if mode == "dot_product":
        assert weights.min() < 0 < weights.max()


@pytest.mark.parametrize("sub_sample", ["after", "before"])
@pytest.mark.parametrize("block", [NonLocalBlock, DisentangledNonLocalBlock])
def test_padding_has_no_weight_where_keys_are_pooled(block, sub_sample):
    block = block(norm=None, sub_sample=sub_sample)
    x = jax.random.normal(jax.random.key(1), (1, 8, 6, 4))
    mask = jnp.ones((1, 8, 6), bool).at[:, 5:].set(False)
    weights = attention_map(block, block.init(jax.random.key(0), x), x, (2, 3), mask=mask)
    assert weights.shape == (4, 3)
    assert (weights[:2] > 0).all()
    assert not weights[2:].any()
    assert weights.sum() == pytest.approx(1, abs=1e-6)


def test_a_frame_of_padding_has_no_weight():
    block, variables, x = make_block((1, 2, 4, 5, 6), axes="space")
    mask = jnp.ones((1, 2, 4, 5), bool).at[:, 1].set(False)
    assert not attention_map(block, variables, x, (1, 0, 0), mask=mask).any()


def test_records_of_an_earlier_call_are_ignored():
    block, variables, x = make_block((1, 4, 5, 6))
    _, state = block.apply(variables, 2 * x, mutable=["intermediates"])
    expected = attention_map(block, variables, x, (1, 2))
    np.testing.assert_array_equal(attention_map(block, variables | state, x, (1, 2)), expected)


class Masked(nn.Module):
    """Calls a block twice. The mask is for the first call, or for both."""

    both: bool = True

    @nn.compact
    def __call__(self, x, mask=None):
        block = NonLocalBlock(norm=None, name="block")
        x = nn.Dense(6)(block(x, mask=mask))
        return block(x, mask=mask if self.both else None)


def test_each_call_of_a_block_has_a_map():
    _, _, x = make_block((1, 4, 5, 6))
    model = Masked()
    variables = jax.tree.map(lambda a: 20 * a + 0.1, model.init(jax.random.key(0), x))
    block = {"params": variables["params"]["block"]}
    dense = {"params": variables["params"]["Dense_0"]}
    second = nn.Dense(6).apply(dense, NonLocalBlock(norm=None).apply(block, x))
    for call, features in enumerate((x, second)):
        expected = attention_map(NonLocalBlock(norm=None), block, features, (1, 2))
        found = attention_map(model, variables, x, (1, 2), call=call)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    assert np.abs(found - attention_map(model, variables, x, (1, 2))).max() > 1e-3
    for call in (2, -1):
        with pytest.raises(InputError, match=rf"call is {call}, but .* 2 calls .* use 0 to 1"):
            attention_map(model, variables, x, (1, 2), call=call)


def test_all_calls_of_a_block_or_none_have_a_mask():
    model, x = Masked(both=False), jnp.ones((1, 4, 5, 6))
    variables, mask = model.init(jax.random.key(0), x), jnp.ones((1, 4, 5), bool)
    with pytest.raises(InputError, match="only some calls of the block 'block' have a mask"):
        attention_map(model, variables, x, (1, 2), mask=mask)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        return nn.remat(NonLocalBlock)(norm=None, name="block")(nn.Dense(6)(x), mask=mask), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x, mask=None):
        layers = nn.scan(
            Layer,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=3,
        )
        return layers(name="layers")(x, mask)[0]


def test_each_layer_of_a_scan_has_a_map():
    _, _, x = make_block((1, 4, 5, 6))
    mask = jnp.ones((1, 4, 5), bool).at[:, 3].set(False)
    model = Scanned()
    variables = model.init(jax.random.key(0), x)
    features = x
    for call in range(3):
        params = jax.tree.map(lambda a, i=call: a[i], variables["params"]["layers"])
        features = nn.Dense(6).apply({"params": params["Dense_0"]}, features)
        block = NonLocalBlock(norm=None), {"params": params["block"]}
        expected = attention_map(*block, features, (1, 2), mask=mask)
        found = attention_map(model, variables, x, (1, 2), mask=mask, call=call)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
        features = block[0].apply(block[1], features, mask=mask)


_Compiled = nn.jit(NonLocalBlock)


class Compiled(nn.Module):
    """Two blocks that share one trace."""

    @nn.compact
    def __call__(self, x):
        self.sow("intermediates", "input", x, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return _Compiled(norm=None, name="a")(_Compiled(norm=None, name="b")(x))


def test_compiled_blocks_have_maps():
    model, x = Compiled(), jax.random.normal(jax.random.key(1), (1, 4, 5, 6))
    variables = model.init(jax.random.key(0), x)
    _, state = model.apply(variables, x, mutable=["intermediates"])
    for path in "ab":
        (query,), (key,) = (state["intermediates"][path][name] for name in ("query", "key"))
        found = attention_map(model, variables, x, (1, 2), path)
        expected = attention_matrix(query[0, 1, 2], key[0]).reshape(4, 5)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


class Trained(nn.Module):
    """A network that must be told not to train."""

    scale: np.ndarray | None = None  # not hashable

    @nn.compact
    def __call__(self, x, train, deterministic=False):
        x = nn.Dropout(0.5, deterministic=deterministic)(nn.Dense(6)(x))
        return NonLocalBlock()(x, train=train)


@pytest.mark.parametrize("scale", [None, np.ones(3)])
def test_a_model_is_called_for_inference(scale):
    model, x = Trained(scale), jnp.ones((1, 4, 5, 2))
    variables = Trained().init(jax.random.key(0), x, train=False, deterministic=True)
    weights = attention_map(model, variables, x, (0, 0))
    np.testing.assert_allclose(weights, np.full((4, 5), 1 / 20), rtol=1e-4)


def test_a_model_without_masks_is_refused():
    model, x = Network(NonLocalBlock()), jnp.ones((1, 4, 5, 2))
    with pytest.raises(InputError, match="the call of Network has no argument mask; use mask=None"):
        attention_map(model, {}, x, (0, 0), mask=x[..., 0] > 0)


class Frames(nn.Module):
    @nn.compact
    def __call__(self, x):
        return NonLocalBlock(norm=None)(x.reshape(-1, *x.shape[2:]))


def test_a_feature_map_of_other_axes_is_refused():
    x = jnp.ones((1, 3, 4, 5, 6))
    variables = Frames().init(jax.random.key(0), x)
    with pytest.raises(InputError, match=r"of shape \(3, 4, 5, 3\), whose axes are not those of"):
        attention_map(Frames(), variables, x, (0, 0, 0))


@pytest.mark.parametrize("lift", [nn.remat, nn.jit])
def test_the_model_may_be_a_lifted_block(lift):
    x = jax.random.normal(jax.random.key(0), (1, 3, 4, 8))
    block = lift(NonLocalBlock, static_argnums=(2,))()
    variables = block.init(jax.random.key(1), x, False)
    expected = attention_map(NonLocalBlock(), variables, x, (1, 2))
    np.testing.assert_allclose(attention_map(block, variables, x, (1, 2)), expected, rtol=1e-6)
