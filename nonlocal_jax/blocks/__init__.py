"""Flax Linen blocks ``block(x, train=False, mask=None)`` for sequences, images and clips."""

from nonlocal_jax.blocks.disentangled import DisentangledNonLocalBlock
from nonlocal_jax.blocks.global_context import GlobalContextBlock
from nonlocal_jax.blocks.non_local import NonLocalBlock
from nonlocal_jax.layers.norm import BatchNorm

__all__ = ["BatchNorm", "DisentangledNonLocalBlock", "GlobalContextBlock", "NonLocalBlock"]
