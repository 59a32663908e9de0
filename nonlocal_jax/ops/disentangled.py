"""The disentangled operation, composed of softmax attention and reductions over all positions."""

import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import check_mask, check_positions, check_scalar
from nonlocal_jax.ops.context import channel_whiten, context_pool
from nonlocal_jax.ops.pairwise import softmax_attention


def disentangled(
    theta: jax.Array,
    phi: jax.Array,
    g: jax.Array,
    unary: jax.Array,
    *,
    scale: float | jax.Array = 1.0,
    factor: float | jax.Array = 1.0,
    mask: jax.Array | None = None,
    query_mask: jax.Array | None = None,
    axis_name: str | None = None,
    precision: jax.lax.PrecisionLike = None,
    implementation: str = "auto",
) -> jax.Array:
    """Disentangled attention, the sum of a whitened pairwise term and a unary term.

    ::

        y_i = factor * sum_j A_ij g_j + sum_j b_j g_j

        A_ij     = softmax over j of scale * theta'_i . phi'_j
        b_j      = softmax over j of unary_j
        theta'_i = theta_i - (mean over i of theta_i)
        phi'_j   = phi_j - (mean over j of phi_j)

    theta_i, phi_j, g_j and unary_j are the rows of the arguments, and "." is the dot product. The
    first sum is the pairwise term. The second sum is the unary term, which is the same for all i.
    The means are over all positions that are not padding, for each channel. theta' and phi' are
    computed in at least float32 and then rounded to the type of ``g``. The small temperature in
    ``scale`` amplifies rounding errors, so with ``g`` in half precision, pass theta and phi in
    float32: they are then rounded only once, after their means are subtracted.

    Source: DNL paper (arXiv:2006.06668), eq. 11. The convention is that of mmsegmentation. Both
    terms share the values g, and the unary term is added before the output projection.

    Args:
      theta: Queries ``[..., N, C]``.
      phi: Keys ``[..., M, C]``.
      g: Values ``[..., M, D]``.
      unary: Scores of the keys, ``[..., M]``.
      scale: Factor on the pairwise logits, such as 1/(sqrt(C) * temperature), a number or a scalar
        array.
      factor: Factor on the pairwise term, a number or a scalar array. The authors' code learns it.
      mask: Mask ``[..., M]``, False where a key is padding. Padding is ignored. It requires
        ``query_mask``.
      query_mask: Mask ``[..., N]``, False where a query is padding. The mean of theta ignores
        padding. It requires ``mask``.
      axis_name: Axis of a ``jax.shard_map`` that the positions of queries and keys are split over.
      precision: As in ``softmax_attention``.
      implementation: As in ``softmax_attention``.

    Returns:
      ``[..., N, D]`` in the type of ``g``.

    Raises:
      InputError: A type is not floating, the shapes do not match, only one mask is passed, or the
        implementation is unknown.
    """
    check_positions(theta, phi, g)
    if (mask is None) != (query_mask is None):
        given, lacking = ("mask", "query_mask") if query_mask is None else ("query_mask", "mask")
        raise InputError(
            f"{given} is given, but {lacking} is None, and the means of both queries and keys need "
            "a mask; pass both masks"
        )
    check_mask(query_mask, theta.shape[:-1], "query_mask")
    check_scalar(scale=scale, factor=factor)
    if unary.shape != phi.shape[:-1]:
        raise InputError(
            f"unary has shape {unary.shape}, but needs one entry per key; use {phi.shape[:-1]}"
        )
    theta = channel_whiten(theta, mask=query_mask, axis_name=axis_name)
    phi = channel_whiten(phi, mask=mask, axis_name=axis_name)
    if isinstance(scale, jax.Array):  # applied before the rounding
        theta, scale = theta * scale.astype(theta.dtype), 1.0
    shared = {"mask": mask, "axis_name": axis_name, "precision": precision}
    pairwise = softmax_attention(
        theta.astype(g.dtype),
        phi.astype(g.dtype),
        g,
        scale=scale,
        implementation=implementation,
        **shared,
    )
    return jnp.asarray(factor, g.dtype) * pairwise + context_pool(g, unary, **shared)
