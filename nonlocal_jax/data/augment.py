"""The training augmentation of mmsegmentation, on NumPy arrays.

The steps are, in this order: random resize, random crop, horizontal flip, photometric distortion,
and padding to the crop. Functions that draw random numbers take a NumPy ``Generator``. The others
are deterministic.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from nonlocal_jax.data.checks import check_example
from nonlocal_jax.data.images import Window, keep_ratio_size, resize_label_window, resize_window
from nonlocal_jax.data.source import IGNORE_INDEX, Example

# How often a crop is drawn again if one class dominates it. The last crop is always accepted.
_CROP_RETRIES = 10


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
    image, label = augment(example["image"], example["label"], config, rng)
    return {"image": image, "label": label}


def augment(
    image: np.ndarray, label: np.ndarray, config: Mapping[str, Any], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Augments an image and its label map.

    Args:
      image: RGB, uint8 ``[H, W, 3]``.
      label: uint8 ``[H, W]``.
      config: The options. The image is fitted into ``base_size`` times a factor drawn from
        ``scale_range``. ``crop`` is the (height, width) of the crop, and ``category_max_ratio`` the
        largest fraction of it that one class may cover. ``flip`` is the probability of a flip.
        ``photometric`` turns the photometric distortion on. ``mean`` is the color of the padding.
      rng: The random number generator.

    Returns:
      Image and label map of size ``crop``, uint8.
    """
    image, label = random_resized_crop(image, label, config, rng)
    if rng.random() < config["flip"]:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    if config["photometric"]:
        image = photometric_distortion(image, rng)
    return pad(image, label, config["crop"], config["mean"])


def random_resized_crop(
    image: np.ndarray, label: np.ndarray, config: Mapping[str, Any], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes image and label map to the size of ``draw_size``, and crops to ``draw_window``.

    An image of 1024x2048 pixels is resized to up to 2048x4096, of which a crop of 512x1024 remains.
    So the window is drawn first, and then only the pixels of the crop are computed.
    """
    size = draw_size(label.shape, config["base_size"], config["scale_range"], rng)

    def labels(window: Window) -> np.ndarray:
        return resize_label_window(label, size, window)

    window = draw_window(size, labels, config["crop"], config["category_max_ratio"], rng)
    return resize_window(image, size, window), labels(window)


def draw_size(
    image_size: tuple[int, int],
    base_size: tuple[int, int],
    scale_range: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int]:
    """Fits the image into ``base_size`` times a factor, drawn uniformly from ``scale_range``."""
    scale = rng.uniform(*scale_range)
    return keep_ratio_size(image_size, tuple(int(n * scale) for n in base_size))


def draw_window(
    size: tuple[int, int],
    labels: Callable[[Window], np.ndarray],
    crop: tuple[int, int],
    category_max_ratio: float,
    rng: np.random.Generator,
) -> Window:
    """Draws a window of the size of the crop uniformly. A shorter axis is not cropped.

    The window is drawn again, up to ten times, while it contains fewer than two classes, or while
    one class covers the fraction ``category_max_ratio`` or more of its labeled pixels.

    Args:
      size: (height, width) of the image.
      labels: Returns the labels of a window.
      crop: (height, width) of the crop.
      category_max_ratio: See above.
      rng: The random number generator.
    """
    margins = [max(extent - n, 0) for extent, n in zip(size, crop, strict=True)]

    def draw() -> Window:
        starts = [int(rng.integers(margin + 1)) for margin in margins]
        return tuple(
            slice(start, min(start + n, extent))
            for start, n, extent in zip(starts, crop, size, strict=True)
        )

    if not any(margins):
        return slice(0, size[0]), slice(0, size[1])
    window = draw()
    if category_max_ratio < 1:
        for _ in range(_CROP_RETRIES):
            if _is_varied(labels(window), category_max_ratio):
                break
            window = draw()
    return window


def _is_varied(label: np.ndarray, category_max_ratio: float) -> bool:
    # Faster than np.bincount. Float32 counts are exact up to 2^24 pixels.
    counts = cv2.calcHist([label], [0], None, [256], [0, 256])
    counts[IGNORE_INDEX] = 0
    return np.count_nonzero(counts) > 1 and counts.max() < category_max_ratio * counts.sum()


def photometric_distortion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, each with probability 1/2.

    The distortion is that of SSD (arXiv:1512.02325). The contrast is changed second or last, with
    equal probability.
    """

    def coin() -> bool:
        return bool(rng.integers(2))

    if coin():
        image = scale_and_shift(image, shift=rng.uniform(-32, 32))
    contrast_last = coin()
    if not contrast_last and coin():
        image = scale_and_shift(image, scale=rng.uniform(0.5, 1.5))
    if coin():
        image = scale_saturation(image, rng.uniform(0.5, 1.5))
    if coin():
        image = shift_hue(image, int(rng.integers(-18, 18)))
    if contrast_last and coin():
        image = scale_and_shift(image, scale=rng.uniform(0.5, 1.5))
    return image


def scale_and_shift(image: np.ndarray, *, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Computes scale * image + shift in float32, clips to [0, 255] and truncates to uint8."""
    levels = np.arange(256, dtype=np.float32) * np.float32(scale) + np.float32(shift)
    return cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8))


def scale_saturation(image: np.ndarray, scale: float) -> np.ndarray:
    """Multiplies the saturation, in OpenCV's 8-bit HSV."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = scale_and_shift(hsv[..., 1], scale=scale)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def shift_hue(image: np.ndarray, shift: int) -> np.ndarray:
    """Rotates the hue by ``shift`` of 180 steps, in OpenCV's 8-bit HSV."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = cv2.LUT(hsv[..., 0], ((np.arange(256) + shift) % 180).astype(np.uint8))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def pad(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int], mean: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Pads image and label map at the bottom and on the right to ``size``.

    The label map is padded with ``IGNORE_INDEX`` and the image with the rounded mean.
    mmsegmentation pads the normalized image with 0. The difference is less than 0.01 standard
    deviations.
    """
    bottom, right = (n - extent for n, extent in zip(size, label.shape, strict=True))
    if not (bottom or right):
        return image, label
    color = [round(m) for m in mean]
    image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=color)
    label = cv2.copyMakeBorder(label, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=IGNORE_INDEX)
    return image, label
