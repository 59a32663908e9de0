"""Reductions over all positions: what a query-independent context is made of."""

import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import (
    at_least_float32,
    check_mask,
    count_positions,
    over_devices,
    zero_padding,
)


def context_pool(
    x: jax.Array,
    score: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """One vector for all positions: sum_j softmax_j(score_j) x_j, or the mean without a score.

    The context of GC (GCNet, arXiv:1904.11492, eq. 4) and the unary term of DNL (arXiv:2006.06668,
    eq. 11); the softmax is over the positions of one image. The mean is the pooling of
    squeeze-and-excitation. O(N C) operations; beside x, one number a position in memory.

    Args:
      x: features ``[..., N, C]``.
      score: ``[..., N]``; None weighs every position the same.
      mask: ``[..., N]``, False where a position is padding, whose content does not matter.
      axis_name: axis of a ``jax.shard_map`` that the positions are split over.

    Returns:
      ``[..., 1, C]`` in the type of ``x``, computed in at least float32.

    Raises:
      InputError: ``score`` or ``mask`` has not one entry per position.
    """
    check_mask(mask, x.shape[:-1])
    wide = at_least_float32(zero_padding(mask, x))
    if score is None:
        total = over_devices(jnp.sum(wide, axis=-2, keepdims=True), axis_name)
        return (total / count_positions(x, mask, axis_name)).astype(x.dtype)
    if score.shape != x.shape[:-1]:
        raise InputError(f"score must be x.shape[:-1] = {x.shape[:-1]}; got {score.shape}")
    score = at_least_float32(score)
    if mask is not None:
        score = jnp.where(mask, score, jnp.finfo(score.dtype).min)
    largest = jax.lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True))
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    weights = jnp.exp(score - largest)
    total = over_devices(jnp.sum(weights, axis=-1)[..., None, None], axis_name)
    context = over_devices(jnp.einsum("...n,...nc->...c", weights, wide), axis_name)
    return (context[..., None, :] / total).astype(x.dtype)


def channel_whiten(
    x: jax.Array, *, mask: jax.Array | None = None, axis_name: str | None = None
) -> jax.Array:
    """x_i - mean_j x_j for each channel, over the positions of ``[..., N, C]``; at least float32.

    The whitening of DNL: it takes the part that all queries share out of the pairwise term.
    ``mask`` and ``axis_name`` as in ``context_pool``.
    """
    check_mask(mask, x.shape[:-1])
    x = at_least_float32(zero_padding(mask, x))
    total = over_devices(jnp.sum(x, axis=-2, keepdims=True), axis_name)
    return x - total / count_positions(x, mask, axis_name)
