"""Whole networks, built from a flat mapping of plain values."""

from nonlocal_jax.models._parts import BLOCKS
from nonlocal_jax.models.build import (
    EXAMPLE_INPUTS,
    NETWORKS,
    create_model,
    example_input,
    model_options,
)
from nonlocal_jax.models.count import count_multiply_adds
from nonlocal_jax.models.segmentation import SegmentationNet
from nonlocal_jax.models.stream import Stream, stream
from nonlocal_jax.models.video import VideoNet

__all__ = [
    "BLOCKS",
    "EXAMPLE_INPUTS",
    "NETWORKS",
    "SegmentationNet",
    "Stream",
    "VideoNet",
    "count_multiply_adds",
    "create_model",
    "example_input",
    "model_options",
    "stream",
]
