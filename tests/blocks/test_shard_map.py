"""Blocks and norms inside the user's own ``jax.shard_map`` against the same on one device."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from nonlocal_jax.blocks import (
    BatchNorm,
    DisentangledNonLocalBlock,
    GlobalContextBlock,
    NonLocalBlock,
)
from nonlocal_jax.blocks.non_local import MODES
from nonlocal_jax.errors import InputError
from tests.helpers import NORMS

IMAGE, CLIP, SEQUENCE = (4, 8, 6, 8), (2, 4, 4, 3, 8), (4, 12, 8)
# The second axis of x holds the rows of an image or the frames of a clip.
SECOND = PartitionSpec("data", "context")
CLIP_ROWS = PartitionSpec("data", None, "context")
CASES = {
    **{mode: (NonLocalBlock(mode=mode), IMAGE, SECOND) for mode in MODES},
    "sorted": (NonLocalBlock(mode="concatenation", implementation="sorted"), SEQUENCE, SECOND),
    "ring": (NonLocalBlock(implementation="ring", sub_sample=True), IMAGE, SECOND),
    "before": (NonLocalBlock(sub_sample="before"), IMAGE, SECOND),
    "space": (NonLocalBlock(axes="space"), CLIP, CLIP_ROWS),
    "time": (NonLocalBlock(axes="time"), CLIP, SECOND),
    "disentangled": (DisentangledNonLocalBlock(), IMAGE, SECOND),
    "factor": (DisentangledNonLocalBlock(output="factor"), IMAGE, SECOND),
    "global_context": (GlobalContextBlock(fusion=("add", "multiply")), CLIP, SECOND),
    "average": (GlobalContextBlock(pooling="average", norm=BatchNorm), IMAGE, SECOND),
}


def random(*shape):
    return np.random.default_rng(shape).standard_normal(shape)


def mesh():
    devices = jax.devices()[:4]
    return jax.make_mesh((2, 2), ("data", "context"), (AxisType.Auto,) * 2, devices=devices)


def initialize(block, shape):
    variables = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros(shape, jnp.float32))
    return jax.tree.map(lambda leaf: 1 + 0.5 * np.sin(1 + random(*leaf.shape)), variables)


def split(block):
    """The block with the axes of ``mesh``. Its batch is split too."""
    both = ("data", "context")
    if isinstance(block, GlobalContextBlock):  # the context is the same on all positions
        both = "data"
    norm = block.norm
    if norm is BatchNorm:
        norm = functools.partial(BatchNorm, axis_name=both)
    return block.clone(axis_name="context", norm=norm)


def apply(block, variables, x, mask):
    return block.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])


def sharded(block, spec, check_vma, variables, x, mask):
    return jax.shard_map(
        functools.partial(apply, split(block)),
        mesh=mesh(),
        in_specs=(PartitionSpec(), spec, spec),
        out_specs=(spec, PartitionSpec()),
        check_vma=check_vma,
    )(variables, x, mask)


@functools.partial(jax.jit, static_argnums=(0, 1))
def outputs(check_vma, masked):
    """Outputs, statistics and all gradients of all cases; on one device for None."""
    results = {}
    for name, (block, shape, spec) in CASES.items():
        x, weights, mask = random(*shape), np.cos(random(*shape)), None
        if masked:  # some devices have nothing but padding
            mask = random(*shape[:-1]) > -0.5
            mask[0, : shape[1] // 2] = False
            weights *= mask[..., None]
        run = functools.partial(apply, block)
        if check_vma is not None:
            run = functools.partial(sharded, block, spec, check_vma)

        def loss(variables, x, run=run, weights=weights, mask=mask):
            y, updates = run(variables, x, mask)
            y = y if mask is None else jnp.where(mask[..., None], y, 0)
            return jnp.sum(y * weights), (y, updates)

        value_and_grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        results[name] = value_and_grad(initialize(block, shape), x)
    return results


@functools.cache
def one_device(masked):
    return outputs(None, masked)


def assert_close(actual, expected, name=""):
    """To 1e-10 of the largest."""
    largest = max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(expected))
    for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-10 * largest, err_msg=name)


@pytest.mark.parametrize(("check_vma", "masked"), [(True, False), (True, True), (False, True)])
def test_blocks_equal_one_device(check_vma, masked, x64):
    """Outputs, statistics and all gradients, with the gradients taken outside."""
    actual = outputs(check_vma, masked)
    for name, expected in one_device(masked).items():
        assert_close(actual[name], expected, name)


@pytest.mark.parametrize("block", [NonLocalBlock(), DisentangledNonLocalBlock()])
def test_gradients_inside_equal_those_outside(block, x64):
    """As ``check_vma=True`` allows, the gradients of the parameters are summed over the devices."""
    variables, x, spec = initialize(block, IMAGE), random(*IMAGE), SECOND

    def loss(module, variables, x):
        return jnp.sum(jnp.sin(apply(module, variables, x, None)[0]))

    def inside(variables, x):
        return jax.grad(functools.partial(loss, split(block)))(variables, x)["params"]

    actual = jax.jit(
        jax.shard_map(
            inside, mesh=mesh(), in_specs=(PartitionSpec(), spec), out_specs=PartitionSpec()
        )
    )(variables, x)
    expected = jax.jit(jax.grad(functools.partial(loss, block)))(variables, x)["params"]
    assert_close(actual, expected)


@pytest.mark.parametrize("implementation", ["auto", "ring"])
def test_many_positions_are_traced(implementation):
    """Kernels do not support ``check_vma=True``, so "auto" does not choose them there."""
    block = NonLocalBlock(axis_name="context", implementation=implementation)
    x = jax.ShapeDtypeStruct((2, 64, 64, 8), jnp.float32)
    variables = jax.eval_shape(block.init, jax.random.key(0), x)
    run = jax.shard_map(
        block.apply, mesh=mesh(), in_specs=(PartitionSpec(), SECOND), out_specs=SECOND
    )
    assert jax.eval_shape(run, variables, x).shape == x.shape


def test_without_axis_name_a_block_relates_its_own_part(x64):
    block = NonLocalBlock()
    variables, x = initialize(block, IMAGE), random(*IMAGE)
    run = jax.shard_map(
        block.apply,
        mesh=mesh(),
        in_specs=(PartitionSpec(), PartitionSpec(None, ("data", "context"))),
        out_specs=PartitionSpec(None, ("data", "context")),
    )
    parts = [block.apply(variables, part) for part in np.split(x, 4, axis=1)]
    assert_close(run(variables, x), np.concatenate(parts, 1))


@pytest.mark.parametrize(
    "norm",
    NORMS,
)
def test_norms_get_the_axis_of_the_block(norm, x64):
    """Norms whose statistics are over positions; a layer norm is not split."""
    block = NonLocalBlock(norm=norm)
    variables, x = initialize(block, IMAGE), random(*IMAGE)
    spec = PartitionSpec(None, "context")
    run = jax.shard_map(
        lambda variables, x: apply(block.clone(axis_name="context"), variables, x, None),
        mesh=mesh(),
        in_specs=(PartitionSpec(), spec),
        out_specs=(spec, PartitionSpec()),
    )
    assert_close(run(variables, x), apply(block, variables, x, None))


def test_odd_parts_are_not_pooled():
    block = NonLocalBlock(sub_sample=True, axis_name="context")
    with pytest.raises(InputError, match=r"shape \(1, 3, 4, 8\).*use even heights and widths"):
        block.init(jax.random.key(0), jnp.zeros((1, 3, 4, 8)))


def test_flax_norms_are_refused_with_a_mask_over_devices():
    """They would average means over different numbers of positions."""
    block = NonLocalBlock(norm=nn.BatchNorm, axis_name="context")
    variables, x = initialize(block, IMAGE), jnp.zeros(IMAGE)
    mask = jnp.ones(IMAGE[:-1], bool)

    def run(train):
        spec = PartitionSpec(None, "context")
        return jax.shard_map(
            lambda x, mask: block.apply(variables, x, train, mask, mutable=["batch_stats"])[0],
            mesh=mesh(),
            in_specs=spec,
            out_specs=spec,
        )(x, mask)

    assert run(False).shape == IMAGE
    with pytest.raises(InputError, match=r"norm is BatchNorm of Flax.*use nonlocal_jax\.blocks"):
        run(True)
