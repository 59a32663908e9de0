"""The disentangled operation, composed of softmax attention and reductions over all positions."""

import jax

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import check_mask, check_positions
from nonlocal_jax.ops.context import channel_whiten, context_pool
from nonlocal_jax.ops.pairwise import softmax_attention


def disentangled(
    theta: jax.Array,
    phi: jax.Array,
    g: jax.Array,
    unary: jax.Array,
    *,
    scale: float = 1.0,
    mask: jax.Array | None = None,
    query_mask: jax.Array | None = None,
    axis_name: str | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Disentangled attention: a whitened pairwise term plus a unary term.

    ::

        y_i = sum_j softmax_j(scale * theta'_i . phi'_j) g_j + sum_j softmax_j(unary_j) g_j

        theta'_i = theta_i - mean_j theta_j
        phi'_j   = phi_j - mean_j phi_j

    The means are over the positions of an image, for each channel. theta' and phi' are at least
    float32, because the small temperature in ``scale`` amplifies rounding errors.

    Source: DNL paper (arXiv:2006.06668), eq. 11. The convention is that of mmsegmentation: both
    terms share the values g, and the unary term, one vector per image, is added before the output
    projection.

    Args:
      theta: queries ``[..., N, C]``.
      phi: keys ``[..., M, C]``.
      g: values ``[..., M, D]``.
      unary: scores of the keys, ``[..., M]``.
      scale: factor on the pairwise logits, 1/(sqrt(C) * temperature).
      mask: ``[..., M]``, False where a key is padding, which is ignored.
      query_mask: ``[..., N]``, False where a query is padding, which the mean of theta ignores.
      axis_name: axis of a ``jax.shard_map`` that the positions of queries and keys are split over.
      implementation: as in ``softmax_attention``.

    Returns:
      ``[..., N, D]`` in the type of ``g``.

    Raises:
      InputError: the shapes do not match, or the implementation is unknown.
    """
    check_positions(theta, phi, g)
    if (mask is None) != (query_mask is None):
        raise InputError(
            "got only one of mask and query_mask, but both keys and queries have a mean; pass both"
        )
    check_mask(query_mask, theta.shape[:-1], "query_mask")
    shared = {"axis_name": axis_name}
    pairwise = softmax_attention(
        channel_whiten(theta, mask=query_mask, **shared),
        channel_whiten(phi, mask=mask, **shared),
        g,
        scale=scale,
        mask=mask,
        implementation=implementation,
        **shared,
    )
    return pairwise + context_pool(g, unary, mask=mask, **shared)
