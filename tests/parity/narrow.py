"""Narrow networks of the same code as the published ones, and what is kept of their numbers."""

from typing import Any

import formula
import numpy as np
import step
from ml_collections import ConfigDict

from configs import segmentation

# name of the row that the configuration comes from
ROWS = [
    f"{head}_r50-d8_{crop}_40k_cityscapes"
    for head in ("nonlocal", "dnl", "gcnet")
    for crop in ("512x1024", "769x769")
]
# Rows that are also trained: each block, and both conventions of corners.
TRAINED = [ROWS[0], ROWS[1], ROWS[3], ROWS[4]]
CHANGES = {
    "num_classes": 5,
    "width": 8,
    "stage_sizes": (1, 1, 2, 2),
    "head_channels": 16,
    "auxiliary_channels": 8,
}
SIZE = (41, 50)
CROP, STRIDE = (33, 32), (17, 16)
SCALES = {
    "base_size": (50, 41),
    "ratios": (0.75, 1.0, 1.5),
    "mean": (120.0, 115.0, 100.0),
    "std": (58.0, 58.0, 58.0),
}
# Of pixels, one in nine is kept.
KEPT = np.s_[..., ::3, ::3, :]


def config(row: str) -> ConfigDict:
    """The config of a narrow network."""
    config = segmentation.get_config(row)
    config.model.update(CHANGES)
    config.model.dropout = 0.0
    config.steps = step.STEPS
    return config


def summary(name: str, gradient: np.ndarray) -> np.ndarray:
    """Length of a gradient, and its product with a vector from the formula, of the same length.

    A gradient that differs by a share of its length changes one of the two by about as much.
    """
    length = np.linalg.norm(gradient)
    direction = formula.uniform("direction of " + name, gradient.shape) - 0.5
    direction = direction / np.linalg.norm(direction)
    return np.array([length, np.sum(gradient * direction) * gradient.size**0.5])


# Small crops of small images, with padding on some.
AUGMENTATION = {
    "base_size": (80, 60),
    "crop": (48, 64),
    "scale_range": (0.5, 2.0),
    "category_max_ratio": 0.75,
    "flip": 0.5,
    "photometric": True,
    "mean": (123.675, 116.28, 103.53),
    "std": (58.395, 57.12, 57.375),
}
SEEDS = range(8)


def example() -> dict[str, Any]:
    """An image, and labels of blotches. Some are ignored."""
    image = formula.image_uint8(72, 90)
    label = image[..., 0] // 40
    return {"image": image, "label": np.where(label == 5, 255, label).astype(np.uint8), "id": 0}
