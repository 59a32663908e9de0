"""Types, precision and initializers of all blocks, under strict promotion of types."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from nonlocal_jax.blocks import (
    BatchNorm,
    DisentangledNonLocalBlock,
    GlobalContextBlock,
    NonLocalBlock,
)
from nonlocal_jax.blocks.non_local import MODES

BLOCKS = {
    **{mode: NonLocalBlock(mode=mode) for mode in MODES},
    "sub_sample": NonLocalBlock(sub_sample=True),
    "frozen": NonLocalBlock(norm=functools.partial(BatchNorm, use_running_average=True)),
    "frozen_flax": NonLocalBlock(norm=functools.partial(nn.BatchNorm, use_running_average=True)),
    "flax": NonLocalBlock(norm=nn.BatchNorm),
    "group": NonLocalBlock(norm=functools.partial(nn.GroupNorm, num_groups=2)),
    "layer": NonLocalBlock(norm=nn.LayerNorm),
    "disentangled": DisentangledNonLocalBlock(),
    "disentangled_gaussian": DisentangledNonLocalBlock(mode="gaussian", sub_sample="before"),
    "factor": DisentangledNonLocalBlock(output="factor"),
    "global_context": GlobalContextBlock(fusion=("add", "multiply")),
    "global_context_batch": GlobalContextBlock(norm=BatchNorm, pooling="average"),
}
EACH_BLOCK = pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
IMAGE = (2, 4, 6, 8)


def random(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def value_and_gradients(block, x):
    """A compiled training step, from variables that are not those of the identity."""
    variables = jax.eval_shape(block.init, jax.random.key(0), x)
    variables = jax.tree.map(
        lambda leaf: (1 + 0.5 * jnp.sin(random(leaf.shape))).astype(leaf.dtype), variables
    )

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def step(variables, x):
        y, updates = block.apply(variables, x, True, x[..., 0] < 9, mutable=["batch_stats"])
        return jnp.sum(y.astype(jnp.float32)), (y, updates)

    return step(variables, x)


@EACH_BLOCK
@pytest.mark.parametrize(
    ("dtype", "attributes"),
    [
        (jnp.bfloat16, {}),
        (jnp.float32, {"dtype": jnp.bfloat16}),
        (jnp.float16, {"dtype": jnp.float16, "param_dtype": jnp.float16}),
    ],
    ids=["input", "computation", "parameters"],
)
def test_half_precision(block, dtype, attributes):
    """Input, computation or also parameters in half precision: forward and backward."""
    x = random(IMAGE, dtype)
    (_, (y, updates)), (gradients, dx) = value_and_gradients(block.clone(**attributes), x)
    assert y.dtype == dx.dtype == dtype
    kinds = {leaf.dtype for leaf in jax.tree.leaves(gradients["params"])}
    assert kinds == {jnp.dtype(attributes.get("param_dtype", jnp.float32))}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updates))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((y, gradients, dx)))


def products(function, *arguments):
    """The precision of each product of a function, also inside of other functions."""

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield equation.params["precision"]
            for inner in jaxprs_in_params(equation.params):
                yield from visit(inner)

    return list(visit(jax.make_jaxpr(function)(*arguments).jaxpr))


@EACH_BLOCK
def test_precision_is_that_of_all_products(block):
    block, x = block.clone(precision=jax.lax.Precision.HIGHEST), random(IMAGE)
    variables = block.init(jax.random.key(0), x)

    def loss(params, x):
        y, _ = block.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y))

    found = products(jax.grad(loss), variables["params"], x)
    assert len(found) > 3
    assert {str(p) for p in found} == {str((jax.lax.Precision.HIGHEST,) * 2)}


@pytest.mark.parametrize(
    ("block", "initialized"),
    [
        (NonLocalBlock, {"theta/kernel", "phi/kernel", "g/kernel"}),
        (DisentangledNonLocalBlock, {"theta/kernel", "phi/kernel", "g/kernel"}),
        (
            functools.partial(DisentangledNonLocalBlock, output="factor"),
            {"theta/kernel", "phi/kernel", "g/kernel"},
        ),
        (GlobalContextBlock, {"channel_add_conv/conv1/kernel"}),
    ],
)
def test_kernel_init(block, initialized):
    """It may also annotate the kernels with their sharding."""
    init = nn.with_partitioning(nn.initializers.constant(7.0), (None, "model"))
    variables = block(kernel_init=init).init(jax.random.key(0), random(IMAGE))
    flat = jax.tree.leaves_with_path(
        variables["params"], is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
    )
    boxed = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.value
        for path, leaf in flat
        if isinstance(leaf, nn.Partitioned)
    }
    assert set(boxed) == initialized
    assert all(np.all(leaf == 7) for leaf in boxed.values())
