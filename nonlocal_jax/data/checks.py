"""Checks of images and labels, for training, evaluation and pictures."""

from typing import Any

import numpy as np

from nonlocal_jax.data.source import IGNORE_INDEX, Example
from nonlocal_jax.errors import InputError


def check_image(image: Any, name: str = "the image") -> None:
    """Requires an RGB image, uint8 ``[H, W, 3]``.

    Raises:
      InputError: The type or the shape is wrong.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"{name} is {image.dtype} {image.shape}; use uint8 RGB [H, W, 3]")


def check_labels(
    labels: np.ndarray, num_classes: int, ignore_index: int = IGNORE_INDEX, name: str = "labels"
) -> None:
    """Requires every label to be a class or ``ignore_index``.

    Wrong labels are not visible in a loss or in metrics. They raise an error and are never dropped.

    Raises:
      InputError: Some labels have other values. The message lists the values.
    """
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= num_classes))
    if wrong.any():
        values = np.unique(labels[wrong])
        listed = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
        raise InputError(
            f"{name} contain {listed}; use the class indices 0 to {num_classes - 1}, or "
            f"{ignore_index} for ignored pixels"
        )


def check_example(example: Example, num_classes: int) -> None:
    """Requires a segmentation example: an image, its label map and an id.

    Args:
      example: ``{"image": uint8 [H, W, 3], "label": uint8 [H, W], "id": str or int}``.
      num_classes: Labels must be below this number, or 255.

    Raises:
      InputError: A field is missing, or its type, shape or values are wrong. The message names the
        id.
    """
    if missing := [field for field in ("image", "label", "id") if field not in example]:
        raise InputError(
            f"an example lacks {', '.join(missing)} (it has {', '.join(example) or 'no fields'}); "
            "add each missing field to the source"
        )
    name = f"example {example['id']!r}"
    check_image(example["image"], f"the image of {name}")
    size, label = np.shape(example["image"])[:2], np.asarray(example["label"])
    if label.dtype != np.uint8 or label.shape != size:
        raise InputError(
            f"the label of {name} is {label.dtype} {label.shape}; "
            f"use uint8 {size}, the size of its image"
        )
    check_labels(label, num_classes, name=f"the labels of {name}")
