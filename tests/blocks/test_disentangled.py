"""What only the disentangled block has: its temperature, its variant "factor", its rounding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nonlocal_jax import ops
from nonlocal_jax.blocks import DisentangledNonLocalBlock
from nonlocal_jax.errors import InputError
from nonlocal_jax.sharding import CONTEXT, make_mesh, use_mesh

IMAGE = (2, 4, 6, 8)


def random(*shape):
    return jnp.asarray(np.random.default_rng(shape).standard_normal(shape))


def initialize(block, shape=IMAGE):
    variables = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros(shape, jnp.float32))
    return jax.tree.map(lambda leaf: 1 + 0.5 * jnp.sin(random(*leaf.shape)), variables)


class Learned(nn.Module):
    """A block with a learned temperature."""

    @nn.compact
    def __call__(self, x, train=False):
        temperature = self.param("temperature", nn.initializers.constant(0.5), (), jnp.float32)
        return DisentangledNonLocalBlock(temperature=temperature, name="block")(x, train)


@pytest.mark.parametrize("context", [None, 2])
def test_a_learned_temperature(x64, context):
    """Its value and its gradient, also on a mesh, where it is closed over by a shard_map."""
    x, fixed, model = random(*IMAGE), DisentangledNonLocalBlock(temperature=0.5), Learned()
    variables = initialize(fixed)
    nested = {kind: {"block": tree} for kind, tree in variables.items()}
    nested["params"]["temperature"] = jnp.asarray(0.5, jnp.float32)

    @jax.jit
    def run(variables, x):
        if context is None:
            return model.apply(variables, x)
        mesh = make_mesh(context=context)
        with use_mesh(mesh):
            spec = PartitionSpec(None, CONTEXT)
            x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
            return model.apply(variables, x)

    np.testing.assert_allclose(run(nested, x), fixed.apply(variables, x), rtol=1e-10)

    def loss(temperature, module=DisentangledNonLocalBlock):
        return jnp.sum(jnp.sin(module(temperature=temperature).apply(variables, x)))

    gradient = jax.grad(lambda variables: jnp.sum(jnp.sin(run(variables, x))))(nested)
    step = 2**-10  # the sums are exact in float32, to which numbers are rounded
    expected = (loss(0.5 + step) - loss(0.5 - step)) / (2 * step)
    np.testing.assert_allclose(gradient["params"]["temperature"], expected, rtol=1e-4)


def test_a_number_is_rounded_to_float32_as_in_mmsegmentation(x64):
    x, variables = random(*IMAGE), initialize(DisentangledNonLocalBlock())
    given = 0.05, float(np.float32(0.05)), jnp.asarray(0.05, jnp.float32)
    a, b, c = (DisentangledNonLocalBlock(temperature=t).apply(variables, x) for t in given)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a, c, rtol=1e-10)


@pytest.mark.parametrize("temperature", [jnp.ones(1), np.ones((2, 1)), -1.0, float("nan")])
def test_invalid_temperatures_are_refused(temperature):
    with pytest.raises(InputError, match=r"temperature (has shape|is) .*; use a"):
        DisentangledNonLocalBlock(temperature=temperature).init(jax.random.key(0), jnp.zeros(IMAGE))


def test_unknown_outputs_are_refused():
    with pytest.raises(InputError, match=r"output is 'sum'; use one of projection, factor"):
        DisentangledNonLocalBlock(output="sum").init(jax.random.key(0), jnp.zeros(IMAGE))


@pytest.mark.parametrize("sub_sample", [False, "before"])
def test_factor_is_the_block_of_the_authors(x64, sub_sample):
    """z = x + gamma y + u, with g of C channels without bias, in numpy."""
    block = DisentangledNonLocalBlock(output="factor", sub_sample=sub_sample)
    x, variables = random(*IMAGE), initialize(block)
    p = jax.device_get(variables["params"])
    shapes = jax.tree.map(np.shape, p)
    assert set(variables) == {"params"}
    assert set(shapes) == {"theta", "phi", "g", "conv_mask", "gamma"}
    assert shapes["g"] == {"kernel": (8, 8)}
    assert shapes["gamma"] == ()

    flat = np.asarray(x).reshape(2, -1, 8)
    pooled = nn.max_pool(x, (2, 2), strides=(2, 2)) if sub_sample else x
    keys = np.asarray(pooled).reshape(2, -1, 8)
    theta = flat @ p["theta"]["kernel"] + p["theta"]["bias"]
    phi, m = (keys @ p[name]["kernel"] + p[name]["bias"] for name in ("phi", "conv_mask"))
    g = keys @ p["g"]["kernel"]
    theta, phi = (a - a.mean(1, keepdims=True) for a in (theta, phi))
    temperature = float(np.float32(0.05))
    pairwise = np.asarray(ops.attention_weights(theta, phi, scale=0.5 / temperature)) @ g
    weights = np.exp(m - m.max(1, keepdims=True))
    unary = (weights / weights.sum(1, keepdims=True) * g).sum(1, keepdims=True)
    expected = (flat + p["gamma"] * pairwise + unary).reshape(x.shape)
    np.testing.assert_allclose(block.apply(variables, x), expected, rtol=1e-10)


def test_factor_starts_without_the_pairwise_term():
    block = DisentangledNonLocalBlock(output="factor")
    variables = block.init(jax.random.key(0), jnp.zeros(IMAGE))
    assert variables["params"]["gamma"] == 0


def test_half_precision_rounds_after_whitening():
    """A bias of theta and phi cancels, and does not cost digits before it does."""
    block = DisentangledNonLocalBlock(dtype=jnp.bfloat16)
    x = random(*IMAGE).astype(jnp.bfloat16)
    variables = jax.tree.map(lambda leaf: 0.3 * leaf, initialize(block))
    params = variables["params"]
    outputs = []
    for bias in (0.0, 100.0):
        biases = {
            name: {"kernel": params[name]["kernel"], "bias": jnp.full(4, bias)}
            for name in ("theta", "phi")
        }
        y = block.apply({**variables, "params": {**params, **biases}}, x)
        outputs.append(y.astype(jnp.float32))
    # Rounding to bfloat16 before the whitening makes errors of 0.25 in theta and phi.
    np.testing.assert_allclose(*outputs, atol=0.03)
