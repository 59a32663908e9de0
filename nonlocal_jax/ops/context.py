"""Reductions over all positions: what a query-independent context is made of."""

import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops.numerics import at_least_float32


def context_pool(x: jax.Array, score: jax.Array | None = None) -> jax.Array:
    """One vector for all positions: sum_j softmax_j(score_j) x_j, or the mean without a score.

    The context of GC (GCNet, arXiv:1904.11492, eq. 4) and the unary term of DNL (arXiv:2006.06668,
    eq. 11); the softmax is over the positions of one image. The mean is the pooling of
    squeeze-and-excitation.

    Args:
      x: features ``[..., N, C]``.
      score: ``[..., N]``; None weighs every position the same.

    Returns:
      ``[..., 1, C]`` in the type of ``x``, computed in at least float32.

    Raises:
      ValueError: ``score`` has not one entry per position.
    """
    wide = at_least_float32(x)
    if score is None:
        return jnp.mean(wide, axis=-2, keepdims=True).astype(x.dtype)
    if score.shape != x.shape[:-1]:
        raise InputError(f"score must be x.shape[:-1] = {x.shape[:-1]}; got {score.shape}")
    weights = jax.nn.softmax(at_least_float32(score), axis=-1)
    return jnp.einsum("...n,...nc->...c", weights, wide)[..., None, :].astype(x.dtype)


def channel_whiten(x: jax.Array) -> jax.Array:
    """x_i - mean_j x_j for each channel, over the positions of ``[..., N, C]``; at least float32.

    The whitening of DNL: it takes the part that all queries share out of the pairwise term.
    """
    x = at_least_float32(x)
    return x - jnp.mean(x, axis=-2, keepdims=True)
