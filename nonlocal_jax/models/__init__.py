"""Whole networks, built from a flat mapping of plain values."""

from nonlocal_jax.models.build import (
    BLOCKS,
    EXAMPLE_INPUTS,
    NETWORKS,
    create_model,
    example_input,
    model_options,
)
from nonlocal_jax.models.segmentation import SegmentationNet

__all__ = [
    "BLOCKS",
    "EXAMPLE_INPUTS",
    "NETWORKS",
    "SegmentationNet",
    "create_model",
    "example_input",
    "model_options",
]
