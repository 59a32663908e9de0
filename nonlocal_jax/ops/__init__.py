"""Pure functions of arrays, without parameters. They need only JAX.

Feature maps are flattened to positions: queries are ``[..., N, C]``, keys ``[..., M, C]`` and
values ``[..., M, D]``. The blocks in ``nonlocal_jax.blocks`` call these functions on feature maps.
"""

from nonlocal_jax.ops._attention import best_attention
from nonlocal_jax.ops.context import channel_whiten, context_pool
from nonlocal_jax.ops.convolution import conv
from nonlocal_jax.ops.disentangled import disentangled
from nonlocal_jax.ops.pairwise import (
    IMPLEMENTATIONS,
    concatenation,
    dot_product,
    softmax_attention,
)
from nonlocal_jax.ops.resize import resize
from nonlocal_jax.ops.shift import temporal_shift
from nonlocal_jax.ops.softmax import attention_weights
from nonlocal_jax.ops.upsampled import upsampled_cross_entropy

__all__ = [
    "IMPLEMENTATIONS",
    "attention_weights",
    "best_attention",
    "channel_whiten",
    "concatenation",
    "context_pool",
    "conv",
    "disentangled",
    "dot_product",
    "resize",
    "softmax_attention",
    "temporal_shift",
    "upsampled_cross_entropy",
]
