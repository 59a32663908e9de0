"""Whole networks, built from a flat mapping of plain values."""

from nonlocal_jax.models.build import NETWORKS, create_model, example_input
from nonlocal_jax.models.segmentation import SegmentationNet

__all__ = ["NETWORKS", "SegmentationNet", "create_model", "example_input"]
