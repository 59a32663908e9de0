"""Layers that blocks, backbones and heads share: convolutions, norms and initializers."""

from nonlocal_jax.layers import initializers
from nonlocal_jax.layers.constructor import Constructor
from nonlocal_jax.layers.conv import Conv, ConvNorm
from nonlocal_jax.layers.norm import BatchNorm, NormFn, apply_norm
from nonlocal_jax.layers.temporal_shift import TemporalShift

__all__ = [
    "BatchNorm",
    "Constructor",
    "Conv",
    "ConvNorm",
    "NormFn",
    "TemporalShift",
    "apply_norm",
    "initializers",
]
