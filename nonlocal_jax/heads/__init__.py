"""Heads: from a backbone's feature maps to logits."""

from nonlocal_jax.heads.fcn import FCNHead

__all__ = ["FCNHead"]
