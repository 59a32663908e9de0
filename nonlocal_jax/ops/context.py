"""Reductions over all positions. Their results do not depend on a query."""

import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import (
    at_least_float32,
    check_floating,
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
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Pools all positions into one vector.

    ::

        c   = sum_j a_j x_j                  with a score
        a_j = softmax over j of score_j
        c   = mean over j of x_j             without a score

    x_j is the feature vector of position j. The first c is the context of the global context block
    (GCNet, arXiv:1904.11492, eq. 4) and the unary term of the disentangled block
    (arXiv:2006.06668, eq. 11). The second c is the pooling of squeeze-and-excitation. The cost is
    O(N C) operations, and memory for one number per position.

    Args:
      x: Features ``[..., N, C]``.
      score: Scores ``[..., N]``, or None for the mean.
      mask: Mask ``[..., N]``, False where a position is padding. Padding is ignored.
      axis_name: Axis of a ``jax.shard_map`` that the positions are split over.
      precision: Precision of the product of weights and features, as in ``jax.numpy.einsum``.

    Returns:
      ``[..., 1, C]`` in the type of ``x``, computed in at least float32.

    Raises:
      InputError: A type is not floating, there is no position, or the score or the mask does not
        have one entry per position.
    """
    check_floating(x=x, **({} if score is None else {"score": score}))
    if x.ndim < 2 or x.shape[-2] == 0:
        raise InputError(f"x has shape {x.shape}; use [..., N, C] with at least one position")
    check_mask(mask, x.shape[:-1])
    wide = at_least_float32(zero_padding(mask, x))
    if score is None:
        total = over_devices(jnp.sum(wide, axis=-2, keepdims=True), axis_name)
        return (total / count_positions(x, mask, axis_name)).astype(x.dtype)
    if score.shape != x.shape[:-1]:
        raise InputError(
            f"score has shape {score.shape}, but needs one entry per position; use {x.shape[:-1]}"
        )
    score = at_least_float32(score)
    if mask is not None:
        score = jnp.where(mask, score, jnp.finfo(score.dtype).min)
    largest = jax.lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True))
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    weights = jnp.exp(score - largest).astype(wide.dtype)
    total = over_devices(jnp.sum(weights, axis=-1)[..., None, None], axis_name)
    product = jnp.einsum("...n,...nc->...c", weights, wide, precision=precision)
    context = over_devices(product, axis_name)
    return (context[..., None, :] / total).astype(x.dtype)


def channel_whiten(
    x: jax.Array, *, mask: jax.Array | None = None, axis_name: str | None = None
) -> jax.Array:
    """Subtracts the mean over the positions, for each channel: x_i - (mean over j of x_j).

    This is the whitening of the disentangled block (arXiv:2006.06668). It removes the part of the
    pairwise logits that is the same for all queries.

    Args:
      x: Features ``[..., N, C]``.
      mask: Mask ``[..., N]``, False where a position is padding. Padding is ignored.
      axis_name: Axis of a ``jax.shard_map`` that the positions are split over.

    Returns:
      ``[..., N, C]``, at least float32.

    Raises:
      InputError: The type is not floating, x has less than two axes, or the mask does not have one
        entry per position.
    """
    check_floating(x=x)
    if x.ndim < 2:
        raise InputError(f"x has shape {x.shape}; use [..., N, C]")
    check_mask(mask, x.shape[:-1])
    x = at_least_float32(zero_padding(mask, x))
    total = over_devices(jnp.sum(x, axis=-2, keepdims=True), axis_name)
    return x - total / count_positions(x, mask, axis_name)
