"""An operation on positions over the devices of the mesh that is in use (``jax.set_mesh``)."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from nonlocal_jax.mesh import CONTEXT, DATA


def _sizes() -> dict[str, int]:
    """The axes of the current mesh that are left to the compiler; none for one device."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto
    }
    return sizes if math.prod(sizes.values()) > 1 else {}


def _pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    return jnp.pad(x, [(0, -n % multiple if i == axis else 0) for i, n in enumerate(x.shape)])


def over_mesh(
    operation: Callable[..., jax.Array],
    queries: jax.Array,
    *keys: jax.Array,
    **masks: jax.Array | None,
) -> jax.Array:
    """``operation(queries, *keys, **masks, axis_name=…)``, every device on its own part.

    Compilers cannot split a kernel, and would gather what a ring passes on; so the parts are made
    here. The batch goes over "data" where it divides. Over "context" goes what is independent, such
    as the frames of ``axes="space"``, where it divides, else the positions, with padding to make
    them divide.

    Args:
      operation: of ``nonlocal_jax.ops``.
      queries: ``[B, ..., N, C]``, or scores ``[B, ..., N]``.
      keys: keys and what belongs to them, ``[B, ..., M, C]`` or ``[B, ..., M]``.
      masks: those that the operation takes, None where nothing is padding: ``mask`` of the keys,
        ``[B, ..., M]``, and ``query_mask``, ``[B, ..., N]``.

    Returns:
      ``[B, ..., N, D]``.
    """
    sizes = _sizes()
    leading = keys[1].shape[:-2]  # of the values
    lengths = {"mask": keys[1].shape[-2], "query_mask": queries.shape[len(leading)]}
    split = [None] * (len(leading) + 1)
    if DATA in sizes and leading[0] % sizes[DATA] == 0:
        split[0] = DATA
    axis_name = None
    if sizes.get(CONTEXT, 1) > 1:
        devices = sizes[CONTEXT]
        independent = [i for i, n in enumerate(leading) if i > 0 and n % devices == 0]
        split[independent[0] if independent else -1] = CONTEXT
        if not independent:
            axis_name = CONTEXT
            if any(n % devices for n in lengths.values()):
                pad = functools.partial(_pad, axis=len(leading), multiple=devices)
                masks = {
                    name: pad(jnp.ones((*leading, lengths[name]), bool) if mask is None else mask)
                    for name, mask in masks.items()
                }
                queries, *keys = map(pad, (queries, *keys))

    def on_device(queries, keys, masks):
        return operation(queries, *keys, **masks, axis_name=axis_name)

    arguments = queries, tuple(keys), masks
    if not sizes:
        return on_device(*arguments)
    spec = PartitionSpec(*split)
    spread = jax.shard_map(
        on_device,
        in_specs=spec,
        out_specs=spec,
        axis_names=set(sizes),  # all: a kernel bears none that is left to the compiler
        check_vma=False,  # kernels do not say over which axes their results vary
    )
    y = spread(*arguments)
    return jax.lax.slice_in_dim(y, 0, lengths["query_mask"], axis=len(leading))
