"""Layers that blocks, backbones and heads share: convolutions, norms and initializers."""

from nonlocal_jax.layers.norm import BatchNorm, NormFn, apply_norm

__all__ = ["BatchNorm", "NormFn", "apply_norm"]
