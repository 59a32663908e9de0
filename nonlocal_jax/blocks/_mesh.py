"""An operation on positions over the devices of the mesh that is in use (``jax.set_mesh``)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from nonlocal_jax.ops._numerics import zero_padding
from nonlocal_jax.sharding import CONTEXT, DATA


def _split_of(x: jax.Array) -> tuple[str | tuple[str, ...] | None, int]:
    """The mesh axes that the batch of x is split over, and how many devices share its positions.

    Where axes are explicit, x says how its batch is split, and positions are not. Otherwise the
    names of the axes say it. Inside a ``jax.shard_map`` the parts are made already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Manual in mesh.axis_types:
        return None, 1
    if _explicit():
        return jax.typeof(x).sharding.spec[0], 1
    divides = x.shape[0] % mesh.shape.get(DATA, 1) == 0
    return DATA if DATA in mesh.shape and divides else None, mesh.shape.get(CONTEXT, 1)


def _explicit() -> bool:
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def _place(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Where axes are explicit, x has to be moved to where it is wanted."""
    return jax.sharding.reshard(x, spec) if _explicit() else x


def block_input(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """What a block sees of ``[B, *S, C]`` and its mask ``[B, *S]``: zeros where x is padding.

    Gradients of what NaN passes through are NaN, even if nothing looks there. Where axes are
    explicit, only the batch stays split: contractions over split positions are refused.
    """
    spec = PartitionSpec(*jax.typeof(x).sharding.spec[:1])
    mask = None if mask is None else _place(mask, spec)
    return zero_padding(mask, _place(x, spec)), mask


def split_like(y: jax.Array, x: jax.Array) -> jax.Array:
    """Where axes are explicit, y split as x is."""
    return _place(y, jax.typeof(x).sharding.spec)


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
    leading = keys[1].shape[:-2]  # of the values
    lengths = {"mask": keys[1].shape[-2], "query_mask": queries.shape[len(leading)]}
    batch, devices = _split_of(queries)
    split = [batch] + [None] * len(leading)
    axis_name = None
    if devices > 1:
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

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or not any(split):
        return on_device(queries, keys, masks)
    spec = PartitionSpec(*split)
    arguments = jax.tree.map(lambda x: _place(x, spec), (queries, tuple(keys), masks))
    spread = jax.shard_map(
        on_device,
        in_specs=spec,
        out_specs=spec,
        axis_names=set(mesh.axis_names),  # around a kernel none may be left to the compiler
        check_vma=False,  # kernels do not say over which axes their results vary
    )
    y = spread(*arguments)
    return jax.lax.slice_in_dim(y, 0, lengths["query_mask"], axis=len(leading))
