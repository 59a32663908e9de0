"""Blocks on meshes of eight devices against the same blocks on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nonlocal_jax.blocks import DisentangledNonLocalBlock, GlobalContextBlock, NonLocalBlock
from nonlocal_jax.sharding import CONTEXT, DATA, make_mesh, use_mesh

IMAGE, ODD, CLIP, SEQUENCE = (4, 8, 6, 8), (4, 7, 5, 8), (2, 4, 3, 5, 8), (8, 16, 8)
CASES = {
    "ring": (NonLocalBlock(implementation="ring"), IMAGE),
    "auto": (NonLocalBlock(), ODD),
    "sub_sample": (NonLocalBlock(sub_sample=True, implementation="chunked"), SEQUENCE),
    "space": (NonLocalBlock(mode="gaussian", axes="space"), CLIP),
    "time": (NonLocalBlock(mode="dot_product", axes="time"), CLIP),
    "frames": (NonLocalBlock(frames=2), CLIP),
    "concatenation": (NonLocalBlock(mode="concatenation", implementation="sorted"), ODD),
    "disentangled": (DisentangledNonLocalBlock(implementation="ring"), ODD),
    "disentangled_clip": (DisentangledNonLocalBlock(sub_sample="before"), CLIP),
    "global_context": (GlobalContextBlock(fusion=("multiply", "add")), ODD),
}
MASKED = {
    "auto": (NonLocalBlock(), ODD),
    "dot_product": (NonLocalBlock(mode="dot_product"), ODD),
    "disentangled": (DisentangledNonLocalBlock(), ODD),
}


def arguments(block, shape, masked=False):
    """Random variables, input, weights of the outputs, and perhaps a mask."""
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal(shape), rng.standard_normal(shape)
    shapes = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, *shape[1:]), jnp.float32))
    variables = jax.tree.map(lambda leaf: 0.5 + rng.random(leaf.shape), shapes)
    mask = None
    if masked:  # positions that do not divide, and devices with nothing but padding
        mask = rng.random(shape[:-1]) < 0.6
        mask[0, :4] = False
    return variables, x, weights, mask


def apply(block, variables, x, mask=None):
    return block.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])


@functools.partial(jax.jit, static_argnums=(0, 1))
def outputs(names, context, given):
    """Outputs, statistics and all gradients; on one device for None."""

    def loss(params, x, block, variables, weights, mask):
        y, updates = apply(block, {**variables, "params": params}, x, mask)
        real = y if mask is None else y * mask[..., None].astype(y.dtype)
        return jnp.sum(real * weights), (real, updates)

    def run(name, variables, x, weights, mask):
        block = (CASES if mask is None else MASKED)[name][0]
        if context is not None:
            spec = PartitionSpec(DATA, CONTEXT)
            x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
        value_and_grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return value_and_grad(variables["params"], x, block, variables, weights, mask)

    if context is None:
        return {name: run(name, *given[name]) for name in names}
    mesh = make_mesh(context=context)
    with use_mesh(mesh):
        return {name: run(name, *given[name]) for name in names}


@functools.cache
def one_device(masked):
    """The arguments of all cases, and their outputs on one device."""
    cases = MASKED if masked else CASES
    given = {name: arguments(*case, masked) for name, case in cases.items()}
    return given, outputs(tuple(cases), None, given)


@pytest.mark.parametrize(
    ("context", "masked"), [(1, False), (2, False), (4, False), (8, False), (4, True)]
)
def test_blocks_over_devices_equal_one_device(context, masked, x64):
    """Outputs, statistics and all gradients to 1e-10 of the largest."""
    given, one = one_device(masked)
    several = outputs(tuple(given), context, given)
    for name in given:
        largest = max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(one[name]))
        for a, b in zip(*(jax.tree.leaves(tree[name]) for tree in (one, several)), strict=True):
            assert a.dtype == b.dtype == np.float64
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-10 * largest, err_msg=name)


@pytest.mark.parametrize(
    "block",
    [
        NonLocalBlock(),
        NonLocalBlock(mode="concatenation"),
        DisentangledNonLocalBlock(),
        GlobalContextBlock(),
    ],
    ids=["nonlocal", "concatenation", "disentangled", "global_context"],
)
def test_explicit_axes(block, x64):
    """Outputs are sharded like x, for mesh axes of any name."""
    variables, x, _, _ = arguments(block, (8, 46, 46, 4))  # large enough to be chunked
    run = jax.jit(lambda *given: apply(block, *given)[0])
    one = run(variables, x)
    mesh = jax.make_mesh((4, 2), ("batch", "rows"), (AxisType.Explicit,) * 2)
    for spec in (jax.P("batch"), jax.P("batch", "rows"), jax.P(None, "rows")):
        with jax.set_mesh(mesh):
            sharded = jax.device_put(x, spec)
            several = run(variables, sharded)
        assert several.sharding.is_equivalent_to(sharded.sharding, x.ndim)
        largest = np.max(np.abs(one))
        np.testing.assert_allclose(several, one, rtol=0, atol=1e-10 * largest)
