"""Heads, which map a backbone's feature map to logits."""

from nonlocal_jax.heads.fcn import FCNHead

__all__ = ["FCNHead"]
