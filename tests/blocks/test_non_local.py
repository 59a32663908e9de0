"""The non-local blocks against their formulas, and the interface of all blocks."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nonlocal_jax import ops
from nonlocal_jax.blocks import DisentangledNonLocalBlock, GlobalContextBlock, NonLocalBlock
from nonlocal_jax.blocks.non_local import MODES
from nonlocal_jax.errors import InputError

SHAPES = {"sequence": (2, 10, 8), "image": (2, 5, 6, 8), "clip": (2, 3, 5, 4, 8)}
BLOCKS = {
    "nonlocal": NonLocalBlock,
    "disentangled": DisentangledNonLocalBlock,
    "global_context": GlobalContextBlock,
}
GROUPS = functools.partial(nn.GroupNorm, num_groups=2)


def randomize(variables, seed=0):
    """Random parameters: with the initial ones a block is the identity, which hides mistakes."""
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [jnp.asarray(0.5 + 0.5 * rng.random(leaf.shape)) for leaf in leaves]
    )


def build(block, shape, seed=0):
    x = jnp.asarray(np.random.default_rng(seed).standard_normal(shape))
    variables = block.init(jax.random.key(seed), x.astype(jnp.float32))
    return x, randomize(variables, seed)


def softmax(s):
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def dense(p, x):
    return x @ np.asarray(p["kernel"]) + np.asarray(p.get("bias", 0.0))


def expected_non_local(variables, x, *, mode, use_scale=True, temperature=None):
    """The block in eval mode on ``[B, N, C]``, in numpy."""
    variables = jax.device_get(variables)
    p = variables["params"]
    g = dense(p["g"], x)
    theta, phi = (x, x) if mode == "gaussian" else (dense(p["theta"], x), dense(p["phi"], x))
    unary = 0.0
    if temperature is not None:
        theta, phi = theta - theta.mean(1, keepdims=True), phi - phi.mean(1, keepdims=True)
        unary = softmax(dense(p["conv_mask"], x)[..., 0])[:, None] @ g
    if mode == "concatenation":
        w = np.asarray(p["concat_project"])[:, 0]
        c = theta.shape[-1]
        s = np.maximum((theta @ w[:c])[:, :, None] + (phi @ w[c:])[:, None], 0)
    else:
        s = theta @ phi.transpose(0, 2, 1)
    if mode in ("dot_product", "concatenation"):
        a = s / phi.shape[1]
    else:
        if mode == "embedded_gaussian" and use_scale:
            s = s / np.sqrt(theta.shape[-1])
        a = softmax(s / float(np.float32(temperature or 1.0)))
    y = dense(p["conv_out"], a @ g + unary)
    norm, stats = p["norm"], variables["batch_stats"]["norm"]
    y = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"]
    return x + y


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
def test_formula(x64, mode, use_scale, kind):
    block = NonLocalBlock(mode=mode, use_scale=use_scale)
    x, variables = build(block, SHAPES[kind])
    flat = np.asarray(x).reshape(x.shape[0], -1, x.shape[-1])
    expected = expected_non_local(variables, flat, mode=mode, use_scale=use_scale)
    np.testing.assert_allclose(
        block.apply(variables, x), expected.reshape(x.shape), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("mode", ["gaussian", "embedded_gaussian"])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_disentangled_formula(x64, mode, temperature):
    block = DisentangledNonLocalBlock(mode=mode, temperature=temperature)
    x, variables = build(block, SHAPES["image"])
    flat = np.asarray(x).reshape(x.shape[0], -1, x.shape[-1])
    expected = expected_non_local(variables, flat, mode=mode, temperature=temperature)
    np.testing.assert_allclose(
        block.apply(variables, x), expected.reshape(x.shape), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("block", BLOCKS.values())
@pytest.mark.parametrize("shape", SHAPES.values())
@pytest.mark.parametrize("train", [False, True])
def test_identity_at_the_start(block, shape, train):
    x = jax.random.normal(jax.random.key(0), shape)
    block = block()
    variables = block.init(jax.random.key(1), x)
    y, _ = block.apply(variables, x, train=train, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, x)


def test_without_norm_the_projection_starts_at_zero_with_a_bias():
    x = jnp.ones(SHAPES["image"])
    variables = NonLocalBlock(norm=None).init(jax.random.key(0), x)
    assert set(variables) == {"params"}
    chex.assert_trees_all_equal(
        variables["params"]["conv_out"], {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(8)}
    )


@pytest.mark.parametrize("block", BLOCKS.values())
@pytest.mark.parametrize("axes", ["space", "time"])
def test_space_and_time_only(x64, block, axes):
    """ "space" applies the block to each frame separately, "time" to each pixel."""
    block = block(axes=axes)
    x, variables = build(block, SHAPES["clip"])
    batch, t, h, w, c = x.shape
    single = type(block)()
    if axes == "space":
        expected = single.apply(variables, x.reshape(batch * t, h, w, c)).reshape(x.shape)
    else:
        columns = jnp.moveaxis(x, 1, 3).reshape(batch * h * w, t, c)
        expected = jnp.moveaxis(single.apply(variables, columns).reshape(batch, h, w, t, c), 3, 1)
    np.testing.assert_allclose(block.apply(variables, x), expected, rtol=1e-10)


@pytest.mark.parametrize("frames", [1, 2, 4, 9])
@pytest.mark.parametrize("block", BLOCKS.values())
def test_groups_of_frames(x64, block, frames):
    """The block is applied to each group of consecutive frames separately."""
    x, variables = build(block(), (2, 4, 3, 5, 8))
    groups = x.reshape(-1, min(frames, 4), *x.shape[2:])
    expected = block().apply(variables, groups).reshape(x.shape)
    np.testing.assert_allclose(block(frames=frames).apply(variables, x), expected, rtol=1e-10)
    if frames == 1:
        space = block(axes="space").apply(variables, x)
        np.testing.assert_allclose(space, expected, rtol=1e-10)


@pytest.mark.parametrize("order", ["before", "after", True])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("block", [NonLocalBlock, DisentangledNonLocalBlock])
def test_sub_sampling(x64, order, kind, block):
    """Keys are pooled along space; pooling x and pooling its projections are not the same."""
    block = block(sub_sample=order, norm=None)
    x, variables = build(block, SHAPES[kind])
    p = variables["params"]
    window = {3: (2,), 4: (2, 2), 5: (1, 2, 2)}[x.ndim]

    def pool(a):
        a = nn.max_pool(jnp.asarray(a), window, strides=window)
        return np.asarray(a).reshape(a.shape[0], -1, a.shape[-1])

    def keys(p):
        if order != "before":
            return pool(dense(p, np.asarray(x)))
        pooled = nn.max_pool(x, window, strides=window)
        return dense(p, np.asarray(pooled).reshape(x.shape[0], -1, x.shape[-1]))

    flat = np.asarray(x).reshape(x.shape[0], -1, x.shape[-1])
    theta, phi, g = dense(p["theta"], flat), keys(p["phi"]), keys(p["g"])
    if "conv_mask" in p:
        unary = keys(p["conv_mask"])[..., 0]
        scale = theta.shape[-1] ** -0.5 / float(np.float32(0.05))
        y = ops.disentangled(theta, phi, g, unary, scale=scale)
    else:
        y = ops.softmax_attention(theta, phi, g, scale=theta.shape[-1] ** -0.5)
    expected = x + dense(p["conv_out"], np.asarray(y)).reshape(x.shape)
    np.testing.assert_allclose(block.apply(variables, x), expected, rtol=1e-10)


def test_train_mode_normalizes_with_the_batch_and_updates_the_statistics(x64):
    block = NonLocalBlock()
    x, variables = build(block, SHAPES["image"])
    _, updates = block.apply(variables, x, train=True, mutable=["batch_stats"])
    old, new = variables["batch_stats"]["norm"], updates["batch_stats"]["norm"]
    assert not np.allclose(old["mean"], new["mean"])
    assert not np.allclose(old["var"], new["var"])


@pytest.mark.parametrize(
    "norm",
    [None, nn.BatchNorm, GROUPS, nn.InstanceNorm, nn.LayerNorm, nn.RMSNorm],
    ids=["none", "batch", "group", "instance", "layer", "rms"],
)
def test_norm_is_injectable(norm):
    block = NonLocalBlock(norm=norm)
    x = jax.random.normal(jax.random.key(0), SHAPES["image"])
    variables = block.init(jax.random.key(1), x)
    y, _ = block.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("block", BLOCKS.values())
def test_compute_dtype(block):
    x = jax.random.normal(jax.random.key(0), SHAPES["image"], jnp.bfloat16)
    block = block(dtype=jnp.bfloat16)
    variables = block.init(jax.random.key(1), x)
    chex.assert_trees_all_equal_dtypes(
        variables["params"], jax.tree.map(lambda a: a.astype(jnp.float32), variables["params"])
    )
    assert block.apply(variables, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("block", [NonLocalBlock, DisentangledNonLocalBlock])
def test_intermediates_give_the_attention_matrix_that_was_used(x64, block):
    block = block(norm=None)
    x, variables = build(block, SHAPES["image"])
    y, state = block.apply(variables, x, mutable=["intermediates"])
    sown = state["intermediates"]
    (query,), (key,) = sown["query"], sown["key"]
    assert query.shape == key.shape == (*x.shape[:-1], 4)
    query, key = (a.reshape(x.shape[0], -1, 4) for a in (query, key))
    attention = np.asarray(ops.attention_weights(query, key))
    p = variables["params"]
    flat = np.asarray(x).reshape(x.shape[0], -1, x.shape[-1])
    g = dense(p["g"], flat)
    unary = 0.0
    if "conv_mask" in p:
        unary = softmax(dense(p["conv_mask"], flat)[..., 0])[:, None] @ g
    expected = flat + dense(p["conv_out"], attention @ g + unary)
    np.testing.assert_allclose(y, expected.reshape(x.shape), rtol=1e-10)


@pytest.mark.parametrize("block", [NonLocalBlock, DisentangledNonLocalBlock])
@pytest.mark.parametrize("axes", ["spacetime", "space", "time"])
def test_intermediates_are_feature_maps(block, axes):
    """Keys that are sub-sampled are half as large along space, for all axes."""
    block = block(axes=axes, sub_sample=axes != "time", dtype=jnp.bfloat16)
    x = jnp.ones((2, 3, 5, 4, 8))
    _, state = jax.eval_shape(
        lambda x: block.init_with_output(jax.random.key(0), x, mutable=True), x
    )
    (query,), (key,) = (state["intermediates"][name] for name in ("query", "key"))
    assert query.shape == (2, 3, 5, 4, 4)
    assert key.shape == (2, 3, 5, 4, 4) if axes == "time" else (2, 3, 2, 2, 4)
    assert query.dtype == key.dtype == jnp.float32


def test_scale_divides_by_the_root_of_the_channels(x64):
    """Some old code multiplied by it: weights of one convention are wrong in the other."""
    x, variables = build(NonLocalBlock(), SHAPES["image"])
    _, scaled = NonLocalBlock().apply(variables, x, mutable=["intermediates"])
    _, plain = NonLocalBlock(use_scale=False).apply(variables, x, mutable=["intermediates"])
    np.testing.assert_allclose(
        scaled["intermediates"]["query"][0] * 2.0, plain["intermediates"]["query"][0], rtol=1e-12
    )


@pytest.mark.parametrize(
    ("block", "shape", "message"),
    [
        (NonLocalBlock(), (4, 8), r"shape \(4, 8\).*one to three axes"),
        (
            GlobalContextBlock(),
            (1, 2, 2, 2, 2, 8),
            r"shape \(1, 2, 2, 2, 2, 8\).*one to three axes",
        ),
        (NonLocalBlock(axes="time"), (1, 4, 4, 8), r"\(1, 4, 4, 8\).*a clip \[B, T, H, W, C\]"),
        (
            NonLocalBlock(axes="space"),
            (1, 4, 8),
            r"axes is 'space', but x has shape \(1, 4, 8\); use",
        ),
        (
            NonLocalBlock(axes="hw"),
            (1, 4, 4, 8),
            r"axes is 'hw'; use one of spacetime, space, time",
        ),
        (
            NonLocalBlock(frames=4),
            (1, 6, 2, 2, 8),
            r"frames is 4.*with 6 frames; use a multiple of 4 frames, or at most 4",
        ),
        (GlobalContextBlock(frames=4), (1, 4, 4, 8), r"frames is 4.*use frames only with a clip"),
        (NonLocalBlock(frames=2, axes="time"), (1, 4, 2, 2, 8), r"use frames only with a clip"),
        (DisentangledNonLocalBlock(frames=0), (1, 4, 2, 2, 8), r"frames is 0; use an integer of 1"),
        (NonLocalBlock(mode="sum"), (1, 4, 4, 8), r"mode is 'sum'; use one of gaussian"),
        (NonLocalBlock(reduction=0), (1, 4, 4, 8), r"reduction is 0; use an integer of 1 or more"),
        (NonLocalBlock(sub_sample="x"), (1, 4, 4, 8), r"sub_sample is 'x'; use one of False, True"),
        (NonLocalBlock(axes="time", sub_sample=True), (1, 2, 4, 4, 8), r"use sub_sample=False"),
        (
            DisentangledNonLocalBlock(mode="dot_product"),
            (1, 4, 4, 8),
            r"for a disentangled block, use",
        ),
        (
            DisentangledNonLocalBlock(temperature=0),
            (1, 4, 4, 8),
            r"temperature is 0; use a positive",
        ),
        (
            GlobalContextBlock(pooling="max"),
            (1, 4, 4, 8),
            r"pooling is 'max'; use one of attention",
        ),
        (
            GlobalContextBlock(fusion=("sum",)),
            (1, 4, 4, 8),
            r"fusion is \('sum',\); use \('add',\)",
        ),
        (GlobalContextBlock(fusion=()), (1, 4, 4, 8), r"fusion is \(\); use \('add',\)"),
    ],
)
def test_invalid_options_and_shapes_are_refused(block, shape, message):
    with pytest.raises(InputError, match=message):
        block.init(jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize(
    "block",
    [
        *(
            block.clone(sub_sample=sub_sample)
            for sub_sample in (False, "before", "after")
            for block in (
                *(NonLocalBlock(mode=mode) for mode in MODES),
                DisentangledNonLocalBlock(),
            )
        ),
        *(NonLocalBlock(norm=norm) for norm in (GROUPS, nn.InstanceNorm, nn.LayerNorm, nn.RMSNorm)),
        GlobalContextBlock(),
        GlobalContextBlock(pooling="average", fusion=("multiply", "add")),
    ],
)
def test_padding_is_ignored(x64, block):
    """Outputs, statistics and gradients of an image of 5x4, padded to 7x6, in train mode."""
    small, variables = build(block, (2, 5, 4, 8))
    window = (slice(None), slice(5), slice(4))
    padded = jnp.full((2, 7, 6, 8), jnp.nan).at[window].set(small)
    mask = jnp.zeros((2, 7, 6), bool).at[window].set(True)

    def run(x, window, **options):
        def loss(params):
            y, updates = block.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"], **options
            )
            return jnp.sum(jnp.sin(y[window])), (y[window], updates)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    expected, actual = run(small, ...), run(padded, window, mask=mask)
    chex.assert_trees_all_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"mask has shape \(1, 4\).*use \(1, 4, 4\)"):
        NonLocalBlock().init(
            jax.random.key(0), jnp.zeros((1, 4, 4, 8)), mask=jnp.ones((1, 4), bool)
        )
