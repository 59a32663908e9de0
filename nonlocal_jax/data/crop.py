"""The training augmentation, fast: only the crop is resampled.

An image of 1024x2048 pixels is resized to up to 2048x4096, of which a crop of 512x1024 remains.
Here the window is drawn first, with the draws of ``augment``, and only its pixels are computed.
"""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from nonlocal_jax.data.augment import Window, augment_cropped, draw_size, draw_window
from nonlocal_jax.data.checks import check_example
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
    """Augments an image and its label map like ``augment.augment``.

    From the same state of ``rng``, the label map is the same, and the image differs by at most one
    gray level before the photometric distortion.
    """
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
    """Returns a window of the image resized to ``size``, to within one gray level.

    Pixel i of the resized image is at (i + 1/2) H / h - 1/2 of the image, for H rows resized to h.
    The values between pixels are interpolated linearly.
    """
    if size == image.shape[:2]:
        return image[window]
    scales, offsets, parts = [], [], []
    for part, n, extent in zip(window, size, image.shape, strict=False):
        scale = extent / n
        first, last = ((i + 0.5) * scale - 0.5 for i in (part.start, part.stop - 1))
        # OpenCV computes positions in float32, so they are relative to the pixels that are used.
        start = max(int(first), 0)
        parts.append(slice(start, min(int(last) + 2, extent)))
        scales.append(scale)
        offsets.append(first - start)
    matrix = np.array([[scales[1], 0, offsets[1]], [0, scales[0], offsets[0]]])
    height, width = (part.stop - part.start for part in window)
    return cv2.warpAffine(
        image[tuple(parts)],
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
