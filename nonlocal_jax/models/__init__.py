"""Whole networks, built from a flat mapping of plain values."""

from nonlocal_jax.models.build import create_model
from nonlocal_jax.models.segmentation import SegmentationNet

__all__ = ["SegmentationNet", "create_model"]
