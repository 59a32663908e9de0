"""The training augmentation, fast: only what the crop needs is resampled.

An image of 1024x2048 pixels is resized to up to 2048x4096, of which a crop of 512x1024 remains.
Here the window is drawn first, with the draws of ``augment``, and only its labels and the part of
the image up to its end are computed.
"""

import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from nonlocal_jax.data.augment import Window, augment_cropped, draw_size, draw_window
from nonlocal_jax.data.checks import check_example
from nonlocal_jax.data.images import resize_image
from nonlocal_jax.data.source import Example


def prepare_example(
    example: Example, config: Mapping[str, Any], num_classes: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Checks and augments one training example.

    Args:
      example: An example of a source, see ``check_example``.
      config: Options of the augmentation, see ``augment``.
      num_classes: Labels must be below this number, or 255.
      rng: The random number generator.

    Returns:
      ``{"image": uint8 [h, w, 3], "label": uint8 [h, w]}`` of the size of the crop.

    Raises:
      InputError: The example is invalid.
    """
    check_example(example, num_classes)
    image, label = augment_crop(example["image"], example["label"], config, rng)
    return {"image": image, "label": label}


def augment_crop(
    image: np.ndarray, label: np.ndarray, config: Mapping[str, Any], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Augments an image and its label map like ``augment.augment``, with the same result."""
    image, label = resized_crop(image, label, config, rng)
    return augment_cropped(image, label, config, rng)


def resized_crop(
    image: np.ndarray, label: np.ndarray, config: Mapping[str, Any], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a size and a window like ``random_resize`` and ``random_crop``, and computes them."""
    size = draw_size(label.shape, config["base_size"], config["scale_range"], rng)

    def labels(window: Window) -> np.ndarray:
        return resample_labels(label, size, window)

    window = draw_window(size, labels, config["crop"], config["category_max_ratio"], rng)
    return resample_image(image, size, window), labels(window)


def resample_labels(label: np.ndarray, size: tuple[int, int], window: Window) -> np.ndarray:
    """Returns a window of the label map resized to ``size``.

    Row i of the resized map is row floor(i H / h) of the map, as in OpenCV, for H rows resized to
    h. Columns are chosen in the same way.
    """
    if size == label.shape:
        return label[window]
    rows, columns = (
        # The order of the operations is that of OpenCV.
        np.floor(np.arange(part.start, part.stop) * (1 / (n / extent))).astype(int)
        for part, n, extent in zip(window, size, label.shape, strict=True)
    )
    rows, columns = np.minimum(rows, label.shape[0] - 1), np.minimum(columns, label.shape[1] - 1)
    return label.take(rows, axis=0).take(columns, axis=1)


def resample_image(image: np.ndarray, size: tuple[int, int], window: Window) -> np.ndarray:
    """Returns a window of the image resized to ``size``, bit for bit.

    OpenCV resizes a part of an image by the factors of the whole if the part starts in the corner.
    So the part from there to the end of the window is resized.
    """
    if size == image.shape[:2]:
        return image[window]
    fy, fx = (n / extent for n, extent in zip(size, image.shape, strict=False))
    # The interpolation of the last row and column reads one more pixel.
    bottom, right = (math.ceil(part.stop / f) + 2 for part, f in zip(window, (fy, fx), strict=True))
    part = image[:bottom, :right]
    resized = cv2.resize(part, None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
    if resized.shape == part.shape:  # OpenCV copied the part instead
        resized = resize_image(image, size)
    return resized[window]
