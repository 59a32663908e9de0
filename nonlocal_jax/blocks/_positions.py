"""Applies the operations of ``nonlocal_jax.ops`` to feature maps ``[B, *S, C]``.

The operations take flat positions ``[..., N, C]``. The functions here flatten feature maps to
positions, shard the operation over the device mesh, and restore the feature map. Sequences, images
and clips share one code path. ``axes`` determines which positions attend to each other. It is
implemented by a reshape.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import check_floating, check_mask, zero_padding
from nonlocal_jax.sharding import CONTEXT, batch_axes

Axes = Literal["spacetime", "space", "time"]
AXES = get_args(Axes)


def relate(
    operation: Callable[..., jax.Array],
    queries: jax.Array,
    *keys: jax.Array,
    axes: str,
    frames: int | None = None,
    axis_name: str | None = None,
    **masks: jax.Array | None,
) -> jax.Array:
    """Computes ``operation(queries, *keys, **masks)`` on feature maps.

    It is sharded over the current device mesh. With ``axis_name``, it is a part of the user's own
    ``jax.shard_map``.

    Args:
      operation: Function of ``nonlocal_jax.ops`` on positions. It takes the masks and
        ``axis_name``.
      queries: Feature map ``[B, *S, C]``, or scores ``[B, *S]``.
      *keys: Feature maps ``[B, *S', C]`` or scores ``[B, *S']`` of the keys, such as keys and
        values. Their size S' is S, or S after ``max_pool_space``.
      axes: The axes of S along which positions attend: "spacetime", "space" or "time".
      frames: Number of consecutive frames that attend to each other, or None for all.
      axis_name: Axis of the user's own ``jax.shard_map`` that these positions are split over.
      **masks: The masks that the operation takes, each an array or None. They are False where the
        feature map is padding. ``mask`` is that of the keys, ``[B, *S']``, and ``query_mask`` that
        of the queries, ``[B, *S]``.

    Returns:
      Feature map ``[B, *S, D]``. With Explicit mesh axes it is sharded like ``queries``.
    """
    rank = max(x.ndim for x in (queries, *keys)) - 2  # the number of axes S
    size = queries.shape[1 : rank + 1]
    sharding = jax.typeof(queries).sharding.spec[: rank + 1]
    maps = queries, keys, masks
    positions = jax.tree.map(lambda x: _flatten(_gather(x, sharding), axes, frames, rank), maps)
    if axis_name is None:
        y = _over_mesh(operation, *positions)
    else:
        queries, keys, masks = positions
        y = operation(queries, *keys, **masks, axis_name=axis_name)
    return _reshard(_restore(y, size, axes), PartitionSpec(*sharding))


def on_positions(
    function: Callable[[jax.Array, jax.Array | None], jax.Array],
    x: jax.Array,
    *,
    axes: str,
    frames: int | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Computes ``function(x, mask)`` on the positions of a feature map.

    Unlike ``relate``, it leaves the partitioning to XLA.

    Args:
      function: Maps positions ``[..., N, C]`` and their mask ``[..., N]`` to ``[..., N, D]``.
      x: Feature map ``[B, *S, C]``.
      axes: The axes of S that become N.
      frames: Number of consecutive frames whose positions become N, or None for all.
      mask: Mask ``[B, *S]``, False where x is padding.

    Returns:
      Feature map ``[B, *S, D]``. With Explicit mesh axes it is sharded like ``x``.
    """
    rank, sharding = x.ndim - 2, jax.typeof(x).sharding.spec
    maps = x, mask
    positions = jax.tree.map(lambda x: _flatten(_gather(x, sharding), axes, frames, rank), maps)
    y = function(*positions)
    return _reshard(_restore(y, x.shape[1:-1], axes), PartitionSpec(*sharding[:-1]))


def read_feature_map(
    x: jax.Array, axes: str, frames: int | None, mask: jax.Array | None, train: bool
) -> tuple[jax.Array, jax.Array | None]:
    """Checks a block's arguments and sets the padding of its input to zero.

    Without the zeros, NaN in the padding would give NaN gradients of the weights.

    Args:
      x: Feature map ``[B, *S, C]`` with one to three axes S.
      axes: One of "spacetime", "space" and "time". "space" requires two or three axes S, "time"
        three.
      frames: Number of consecutive frames that share an attention matrix, or None for all. A
        number requires three axes S and "spacetime".
      mask: Mask ``[B, *S]``, False where x is padding.
      train: Second argument of the block, where a mask may be passed by mistake.

    Returns:
      The feature map and its mask. With Explicit mesh axes the mask is sharded like ``x``.

    Raises:
      InputError: The value of ``axes`` is unknown, or a type or a shape is wrong.
    """
    check_floating(x=x)
    check_mask(mask, x.shape[:-1])
    if jnp.ndim(train) > 0:
        raise InputError(
            f"train has shape {jnp.shape(train)}; use True or False, and pass a mask as mask=mask"
        )
    if axes not in AXES:
        raise InputError(f"axes is {axes!r}; use one of {', '.join(AXES)}")
    if not 3 <= x.ndim <= 5:
        raise InputError(
            f"x has shape {x.shape}, but a block needs one to three axes between batch and "
            "channels; use [B, L, C], [B, H, W, C] or [B, T, H, W, C]"
        )
    if axes == "time" and x.ndim != 5:
        raise InputError(f"axes is 'time', but x has shape {x.shape}; use a clip [B, T, H, W, C]")
    if axes == "space" and x.ndim < 4:
        raise InputError(
            f"axes is 'space', but x has shape {x.shape}; use [B, H, W, C] or [B, T, H, W, C]"
        )
    if frames is not None:
        _check_frames(x, axes, frames)
    if mask is not None:
        mask = _reshard(mask, PartitionSpec(*jax.typeof(x).sharding.spec[:-1]))
    return zero_padding(mask, x), mask


def _check_frames(x: jax.Array, axes: str, frames: int) -> None:
    if axes != "spacetime" or x.ndim != 5:
        raise InputError(
            f"frames is {frames}, axes is {axes!r}, and x has shape {x.shape}; use frames only "
            "with a clip [B, T, H, W, C] and axes='spacetime'"
        )
    if not isinstance(frames, int) or frames < 1:
        raise InputError(f"frames is {frames!r}; use an integer of 1 or more, or None")
    if x.shape[1] > frames and x.shape[1] % frames:
        raise InputError(
            f"frames is {frames}, but x has shape {x.shape} with {x.shape[1]} frames; use a "
            f"multiple of {frames} frames, or at most {frames}"
        )


def max_pool_space(x: jax.Array) -> jax.Array:
    """Max-pools by two along space, not along time. As in PyTorch, an odd last row is dropped."""
    window = (1, 2, 2) if x.ndim == 5 else (2,) * (x.ndim - 2)
    x = _gather(x, jax.typeof(x).sharding.spec)
    return nn.max_pool(x, window, strides=window)


def max_pool_mask(mask: jax.Array) -> jax.Array:
    """Pools a mask ``[B, *S]`` like ``max_pool_space``. False where any position is padding."""
    return max_pool_space((~mask)[..., None].astype(jnp.float32))[..., 0] == 0


def _flatten(x: jax.Array, axes: str, frames: int | None, rank: int) -> jax.Array:
    """Reshapes ``[B, *S, ...]``, with ``rank`` axes S, to ``[..., N, ...]``.

    The N positions attend to each other. "spacetime" gives ``[B, prod(S), ...]``, or with F
    ``frames`` ``[B, T/F, F*H*W, ...]``. "space" is the case F = 1. "time" gives
    ``[B, H, W, T, ...]``.
    """
    if axes == "time":
        return jnp.moveaxis(x, 1, rank)
    batch, size, rest = x.shape[0], x.shape[1 : rank + 1], x.shape[rank + 1 :]
    if axes == "space" and rank == 3:
        frames = 1
    elif frames is None or size[0] <= frames:
        return x.reshape(batch, math.prod(size), *rest)
    return x.reshape(batch, size[0] // frames, frames * math.prod(size[1:]), *rest)


def _restore(y: jax.Array, size: Sequence[int], axes: str) -> jax.Array:
    """Reshapes ``[..., N, D]`` to ``[B, *size, D]``, the inverse of ``_flatten``."""
    if axes == "time":
        return jnp.moveaxis(y, -2, 1)
    return y.reshape(y.shape[0], *size, y.shape[-1])


def _over_mesh(
    operation: Callable[..., jax.Array],
    queries: jax.Array,
    keys: Sequence[jax.Array],
    masks: dict[str, jax.Array | None],
) -> jax.Array:
    """Computes ``operation(queries, *keys, **masks, axis_name=...)`` over the current mesh.

    XLA cannot partition a Pallas or cuDNN call, and it would gather the keys that a ring passes on.
    So the operation runs inside ``jax.shard_map``. The batch is split over "data" and "fsdp" if its
    size is a multiple of theirs. An axis of independent items, such as the frames of
    ``axes="space"``, is split over "context" if its size is a multiple of the size of "context".
    Else the positions are padded to such a multiple and split.
    """
    leading = max((queries, *keys), key=jnp.ndim).shape[:-2]
    axis = len(leading)  # of the positions
    lengths = {"mask": (*keys, queries)[0].shape[axis], "query_mask": queries.shape[axis]}
    batch, devices = _batch_axis_and_context(queries)
    split = [batch] + [None] * axis
    axis_name = None
    if devices > 1:
        independent = [i for i, n in enumerate(leading) if i > 0 and n % devices == 0]
        split[independent[0] if independent else -1] = CONTEXT
        if not independent:
            axis_name = CONTEXT
            if any(n % devices for n in lengths.values()):
                pad = functools.partial(_pad, axis=axis, multiple=devices)
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
    sharded = jax.shard_map(
        on_device,
        in_specs=spec,
        out_specs=spec,
        axis_names=set(mesh.axis_names),  # a kernel needs all mesh axes to be manual
        check_vma=False,  # kernels do not declare over which mesh axes their outputs vary
    )
    arguments = jax.tree.map(lambda x: _reshard(x, spec), (queries, tuple(keys), masks))
    return jax.lax.slice_in_dim(sharded(*arguments), 0, lengths["query_mask"], axis=axis)


def _batch_axis_and_context(x: jax.Array) -> tuple[str | tuple[str, ...] | None, int]:
    """The mesh axes to split the batch of x over, and the number of devices to split an image over.

    With Explicit mesh axes, the sharding of the batch is kept, and the positions are not split.
    With Auto axes, the names "data", "fsdp" and "context" decide. Inside ``jax.shard_map``, nothing
    is split again.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Manual in mesh.axis_types:
        return None, 1
    if _explicit():
        return jax.typeof(x).sharding.spec[0], 1
    axes = batch_axes(mesh)
    divides = x.shape[0] % math.prod(mesh.shape[axis] for axis in axes) == 0
    return axes if axes and divides else None, mesh.shape.get(CONTEXT, 1)


def _pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    return jnp.pad(x, [(0, -n % multiple if i == axis else 0) for i, n in enumerate(x.shape)])


def _explicit() -> bool:
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def _reshard(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """Changes the sharding of x if mesh axes are Explicit."""
    return jax.sharding.reshard(x, spec) if _explicit() else x


def _gather(x: jax.Array, sharding: Sequence[str | tuple[str, ...] | None]) -> jax.Array:
    """All-gathers the positions if mesh axes are Explicit, as JAX does not contract split axes."""
    return _reshard(x, PartitionSpec(*sharding[:1]))
