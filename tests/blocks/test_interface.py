"""How all blocks are called: lifted by transformations, in Flax NNX, and what they record."""

import functools
import pickle

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from nonlocal_jax import ops
from nonlocal_jax.blocks import (
    BatchNorm,
    DisentangledNonLocalBlock,
    GlobalContextBlock,
    NonLocalBlock,
)
from nonlocal_jax.blocks.non_local import MODES
from nonlocal_jax.errors import InputError

# A layer norm has no statistics to train.
BLOCKS = {
    "nonlocal": (NonLocalBlock, {}),
    "disentangled": (DisentangledNonLocalBlock, {}),
    "global_context": (GlobalContextBlock, {"norm": BatchNorm}),
}
EACH_BLOCK = pytest.mark.parametrize(("block", "options"), BLOCKS.values(), ids=BLOCKS)
IMAGE = (2, 5, 4, 8)


def random(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def randomize(variables, seed=0):
    """With the initial parameters a block is the identity, which hides mistakes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 + 0.5 * rng.random(leaf.shape)), variables)


def initialize(module, x, *rest):
    x = x.astype(jnp.float32)
    return randomize(jax.eval_shape(lambda: module.init(jax.random.key(0), x, *rest)))


def dense(p, x):
    return nn.Dense(p["kernel"].shape[-1]).apply({"params": p}, x)


def train(module, variables, x, mask):
    """Output and statistics. All arguments are positional, as lifted modules need it."""
    return module.apply(variables, x, True, mask, mutable=["batch_stats"])


@EACH_BLOCK
def test_blocks_can_be_pickled(block, options):
    block = block(dtype=jnp.bfloat16, **options)
    assert pickle.loads(pickle.dumps(block)) == block


@EACH_BLOCK
def test_vmap_trains(block, options, x64):
    """Several blocks, each with its own parameters and input. Flax ignores keywords here."""
    lifted = nn.vmap(
        block,
        in_axes=(0, None, 0),
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
    )(**options)
    x = random((3, *IMAGE))
    mask = random(x.shape[:-1], 1) > -1
    variables = initialize(lifted, x, False, mask)
    expected = jax.vmap(functools.partial(train, block(**options)))(variables, x, mask)
    actual = train(lifted, variables, x, mask)
    chex.assert_trees_all_close(actual, expected, rtol=1e-9)
    assert not np.allclose(*(jax.tree.leaves(v["batch_stats"])[0] for v in (variables, actual[1])))


@EACH_BLOCK
@pytest.mark.parametrize("lift", [nn.remat, nn.jit])
def test_remat_and_jit_train(block, options, lift, x64):
    """``train`` is a static argument; Flax traces keywords."""
    lifted, plain = lift(block, static_argnums=(2,))(**options), block(**options)
    x = random(IMAGE)
    mask = random(IMAGE[:-1], 1) > -1
    variables = initialize(plain, x, False, mask)

    def gradients(module):
        def loss(variables):
            y, updates = train(module, variables, x, mask)
            return jnp.sum(jnp.where(mask[..., None], jnp.sin(y), 0)), updates

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)

    chex.assert_trees_all_close(gradients(lifted), gradients(plain), rtol=1e-9, atol=1e-12)


@EACH_BLOCK
def test_in_nnx(block, options, x64):
    """A block of Linen as a module of NNX: forward in both modes, statistics, and gradients."""
    linen, x = block(**options), random(IMAGE)
    model = nnx.bridge.ToNNX(linen, rngs=nnx.Rngs(0)).lazy_init(x.astype(jnp.float32))
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    for seed, kind in enumerate(kinds.values()):
        nnx.update(model, randomize(nnx.state(model, kind), seed))

    def variables():
        return {name: nnx.to_pure_dict(nnx.state(model, kind)) for name, kind in kinds.items()}

    @nnx.jit
    def step(model, x):
        def loss(model):
            return jnp.sum(jnp.sin(model(x, train=True, mutable=["batch_stats"])))

        return nnx.value_and_grad(loss)(model)

    def expected_loss(params, statistics):
        variables = {"params": params, "batch_stats": statistics}
        y, updates = linen.apply(variables, x, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y)), updates["batch_stats"]

    given = variables()
    chex.assert_trees_all_close(model(x), linen.apply(given, x), rtol=1e-9)
    value, gradients = step(model, x)
    chex.assert_trees_all_close(
        ((value, variables()["batch_stats"]), nnx.to_pure_dict(gradients)),
        jax.jit(jax.value_and_grad(expected_loss, has_aux=True))(*given.values()),
        rtol=1e-9,
        atol=1e-12,
    )


def test_batch_norm_in_nnx():
    x = random((6, 3))
    model = nnx.bridge.ToNNX(BatchNorm(), rngs=nnx.Rngs(0)).lazy_init(x, use_running_average=False)
    np.testing.assert_allclose(model(x, use_running_average=True), x, rtol=1e-4)
    y = model(x, use_running_average=False, mutable=["batch_stats"])
    np.testing.assert_allclose(jnp.mean(y, 0), 0, atol=1e-6)
    np.testing.assert_allclose(model.mean[...], 0.1 * jnp.mean(x, 0), rtol=1e-5)


@EACH_BLOCK
@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_feature_maps_must_be_floating(block, options, dtype):
    with pytest.raises(InputError, match=f"x has dtype {dtype}; convert it to a floating type"):
        block(**options).init(jax.random.key(0), jnp.ones(IMAGE, dtype))


def recorded(block, x, mask):
    """What the documentation of ``NonLocalBlock`` says: all records, flat, and the variables."""
    variables = initialize(block, x)
    y, state = block.apply(variables, x, mask=mask, mutable=["intermediates"])
    sown = {name: array for name, (array,) in state["intermediates"].items()}
    batch, channels = x.shape[0], sown["query"].shape[-1]
    query, key = (sown[name].reshape(batch, -1, channels) for name in ("query", "key"))
    key_mask = sown["key_mask"].reshape(batch, -1) if mask is not None else None
    assert set(sown) == {"query", "key"} | ({"key_mask"} if mask is not None else set())
    return y, variables["params"], query, key, key_mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sub_sample", [False, "before", "after"])
@pytest.mark.parametrize(
    "block",
    [
        *(NonLocalBlock(mode=mode, norm=None) for mode in MODES),
        *(DisentangledNonLocalBlock(mode=mode, norm=None) for mode in MODES[:2]),
    ],
)
def test_records_give_the_pairwise_function_that_was_used(x64, block, sub_sample, masked):
    """Computes the block from what it records, with padding and with pooled keys."""
    block = block.clone(sub_sample=sub_sample)
    x = random((2, 6, 4, 8))
    mask = (random((2, 6, 4), 1) > -1) if masked else None
    y, p, query, key, key_mask = recorded(block, x, mask)

    keys = x if mask is None else jnp.where(mask[..., None], x, 0)

    def pool(a):
        return nn.max_pool(a, (2, 2), strides=(2, 2))

    def project(name):
        a = pool(keys) if sub_sample == "before" else keys
        a = dense(p[name], a)
        a = pool(a) if sub_sample == "after" else a
        return a.reshape(2, -1, a.shape[-1])

    g, real = project("g"), jnp.ones(key.shape[:2], bool) if key_mask is None else key_mask
    if block.mode in ("gaussian", "embedded_gaussian"):
        weights = ops.attention_weights(query, key, mask=key_mask)
    else:
        f = jnp.einsum("bnk,bmk->bnm", query, key)
        if block.mode == "concatenation":
            f = jax.nn.relu(query + key.swapaxes(1, 2))
        weights = jnp.where(real[:, None], f, 0) / jnp.sum(real, -1, dtype=g.dtype)[:, None, None]
    result = weights @ g
    if "conv_mask" in p:
        result += ops.context_pool(g, project("conv_mask")[..., 0], mask=key_mask)
    expected = (keys + dense(p["conv_out"], result).reshape(x.shape))[... if mask is None else mask]
    np.testing.assert_allclose(y[... if mask is None else mask], expected, rtol=1e-10)


def test_records_have_channels_and_half_precision_is_recorded_in_float32():
    for mode, channels in zip(MODES, (8, 4, 4, 1), strict=True):
        block = NonLocalBlock(mode=mode, dtype=jnp.bfloat16, sub_sample=True)
        _, state = jax.eval_shape(
            lambda block=block: block.init_with_output(
                jax.random.key(0),
                jnp.ones((2, 5, 4, 8), jnp.bfloat16),
                mask=jnp.ones((2, 5, 4), bool),
                mutable=True,
            )
        )
        shapes = {name: (a.shape, a.dtype) for name, (a,) in state["intermediates"].items()}
        assert shapes == {
            "query": ((2, 5, 4, channels), jnp.float32),
            "key": ((2, 2, 2, channels), jnp.float32),
            "key_mask": ((2, 2, 2), bool),
        }


@pytest.mark.parametrize(
    "module",
    [
        GlobalContextBlock(norm=BatchNorm),
        *(
            block(sub_sample=sub_sample)
            for block in (NonLocalBlock, DisentangledNonLocalBlock)
            for sub_sample in (False, "before", "after")
        ),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_export_with_symbolic_sizes(module, masked, x64):
    """Batch, height and width are symbols. One program serves all sizes, also odd ones."""
    shape = export.symbolic_shape("b, h, w, 8", constraints=["h >= 2", "w >= 2"])
    given = [jax.ShapeDtypeStruct(shape, jnp.float64)]
    if masked:
        given.append(jax.ShapeDtypeStruct(shape[:-1], bool))
    variables = initialize(module, random(IMAGE))

    def run(variables, x, mask=None):
        return train(module, variables, x, mask)

    program = export.export(jax.jit(run))(variables, *given)
    for size in ((2, 5, 4, 8), (1, 2, 7, 8)):
        x = random(size)
        arguments = (x, x[..., 0] > -1) if masked else (x,)
        actual, expected = program.call(variables, *arguments), run(variables, *arguments)
        chex.assert_trees_all_close(actual, expected, rtol=1e-9)


def function_of(block, x):
    variables = initialize(block, x)
    return lambda x: jnp.sum(jnp.sin(block.apply(variables, x)))


DERIVATIVES = {
    "reverse": lambda f, x, t: jax.grad(f)(x),
    "forward": lambda f, x, t: jax.jvp(f, (x,), (t,))[1],
    "reverse of reverse": lambda f, x, t: jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), t))(x),
    "forward of reverse": lambda f, x, t: jax.jvp(jax.grad(f), (x,), (t,))[1],
}
REVERSE = {"reverse", "reverse of reverse"}
SUPPORTED = {
    ("embedded_gaussian", "dense"): set(DERIVATIVES),
    ("embedded_gaussian", "chunked"): REVERSE | {"forward of reverse"},
    ("embedded_gaussian", "ring"): REVERSE | {"forward of reverse"},
    ("dot_product", "dense"): set(DERIVATIVES),
    ("dot_product", "reassociated"): set(DERIVATIVES),
    ("concatenation", "dense"): set(DERIVATIVES),
    ("concatenation", "sorted"): REVERSE | {"forward of reverse"},
}


@pytest.mark.parametrize(("mode", "implementation"), SUPPORTED)
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_derivatives(x64, mode, implementation, derivative):
    """The table of ``NonLocalBlock``."""
    x, t = random((1, 3, 4, 8)), random((1, 3, 4, 8), 1)
    compute = DERIVATIVES[derivative]
    block = NonLocalBlock(mode=mode, implementation=implementation)
    if derivative not in SUPPORTED[mode, implementation]:
        with pytest.raises(TypeError, match="forward-mode"):
            compute(function_of(block, x), x, t)
        return
    blocks = (block, block.clone(implementation="dense"))
    actual, expected = (jax.jit(compute, static_argnums=0)(function_of(b, x), x, t) for b in blocks)
    np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-8 * np.max(np.abs(expected)))
