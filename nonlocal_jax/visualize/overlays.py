"""Draws predictions and attention on images, as RGB arrays."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nonlocal_jax.data import check_image
from nonlocal_jax.errors import InputError

_TEXT = (32, 32, 32)
_BORDER = (160, 160, 160)
_WHITE = (255, 255, 255)
_RING = (80, 255, 120)

# Factor on the brightness of an image under a heat map.
_DIM = 0.55


def color_overlay(
    image: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]], alpha: float = 0.6
) -> np.ndarray:
    """Blends the gray levels of an image with the colors of the classes.

    The colors have the hue of the palette, and so of a legend, because the gray image has none.

    Args:
      image: RGB, uint8 ``[H, W, 3]``.
      labels: Indices into the palette, ``[H, W]``. Pixels with other values, such as ignored ones,
        are gray.
      palette: Colors of the classes, RGB from 0 to 255.
      alpha: Weight of the color.

    Returns:
      RGB, uint8 ``[H, W, 3]``.

    Raises:
      InputError: The image is not uint8 RGB, or the labels have a different size.
    """
    check_image(image)
    if labels.shape != image.shape[:2]:
        raise InputError(
            f"labels have the shape {labels.shape}; use {image.shape[:2]}, the size of the image"
        )
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    colors = np.asarray(palette, np.float32)
    # The blend of each class with each gray level. Its last row is for other values.
    levels = np.arange(256, dtype=np.float32)[:, None]
    blends = np.round((1 - alpha) * levels + alpha * colors[:, None])
    blends = np.append(blends, [np.broadcast_to(levels, (256, 3))], axis=0).astype(np.uint8)
    known = (labels >= 0) & (labels < len(colors))
    return blends[np.where(known, labels, len(colors)), gray]


def add_legend(
    image: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> np.ndarray:
    """Adds a legend below an image. It lists the classes in ``labels``, the most frequent first.

    Classes of less than a thousandth of the pixels are left out: they can hardly be seen. If an
    entry of the legend is wider than the image, the image is padded on the right.

    Args:
      image: RGB, uint8 ``[H, W, 3]``.
      labels: Class indices, of any shape. Other values are ignored.
      names: Names of the classes.
      palette: Colors of the classes, RGB from 0 to 255.

    Returns:
      RGB, uint8 ``[H + height of the legend, at least W, 3]``.

    Raises:
      InputError: The image is not uint8 RGB.
    """
    check_image(image)
    counts = np.bincount(labels[(labels >= 0) & (labels < len(names))], minlength=len(names))
    least = max(1, labels.size / 1000)
    present = [c for c in np.argsort(-counts, kind="stable") if counts[c] >= least]
    entries = [(names[c], np.asarray(palette[c], np.uint8)) for c in present]
    panel = legend(entries, image.shape[1], int(np.clip(image.shape[1] / 60, 12, 32)))
    height, width = image.shape[:2]
    picture = np.full((height + len(panel), panel.shape[1], 3), 255, np.uint8)
    picture[:height, :width], picture[height:] = image, panel
    return picture


def legend(entries: Sequence[tuple[str, np.ndarray]], width: int, size: int) -> np.ndarray:
    """Draws a legend.

    Args:
      entries: Texts and their colors: RGB, uint8 ``[3]``, or pictures of ``[size, size, 3]``.
      width: Width of the legend in pixels. It is wider if an entry is.
      size: Size of the font in pixels.

    Returns:
      RGB, uint8 ``[H, at least width, 3]``.
    """
    font = ImageFont.load_default(size)
    line, gap = round(1.7 * size), size // 2
    placed, x, y, right = [], gap, gap, width
    for text, color in entries:
        end = x + size + gap + round(font.getlength(text)) + gap
        if end > width and x > gap:
            x, y, end = gap, y + line, end - x + gap
        placed.append((text, color, x, y))
        x, right = end + gap, max(right, end)
    panel = Image.new("RGB", (right, y + line + gap // 2), _WHITE)
    draw = ImageDraw.Draw(panel)
    for text, color, x, y in placed:
        swatch = np.broadcast_to(color, (size, size, 3))
        panel.paste(Image.fromarray(np.ascontiguousarray(swatch)), (x, y))
        draw.rectangle((x, y, x + size, y + size), outline=_BORDER)
        draw.text((x + size + gap, y + size / 2), text, _TEXT, font, anchor="lm")
    return np.asarray(panel)


def attention_overlay(
    image: np.ndarray,
    weights: np.ndarray,
    pixel: tuple[int, int] | None,
    alpha: float = 0.75,
    *,
    largest: float | None = None,
) -> np.ndarray:
    """Draws an attention map over the darkened image, and a ring around its query pixel.

    The brightness is relative to the largest weight. Enlarge small images first.

    Args:
      image: RGB, uint8 ``[H, W, 3]``.
      weights: Nonnegative weights ``[H', W']``, see ``attention_map``.
      pixel: (row, column) of the pixel in the image. None draws no ring.
      alpha: Opacity of the heat map at the largest weight.
      largest: The largest weight, if ``weights`` are a part of the map. Default: that of
        ``weights``.

    Returns:
      RGB, uint8 ``[H, W, 3]``.

    Raises:
      InputError: The image is not uint8 RGB, or the weights are not a map.
    """
    check_image(image)
    if np.ndim(weights) != 2:
        raise InputError(f"weights have the shape {np.shape(weights)}; use a map [H', W']")
    height, width = image.shape[:2]
    heat = np.asarray(weights, np.float32)
    heat = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    largest = heat.max() if largest is None else largest
    heat = heat / max(largest, np.finfo(np.float32).tiny)
    levels = np.round(255 * heat).astype(np.uint8)
    colors = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1]
    # The root makes small weights visible.
    opacity = alpha * np.sqrt(heat)[..., None]
    picture = (1 - opacity) * _DIM * image + opacity * colors
    picture = np.round(picture).astype(np.uint8)
    return picture if pixel is None else ring(picture, pixel)


def ring(picture: np.ndarray, pixel: tuple[int, int]) -> np.ndarray:
    """Draws a ring around a pixel, in place, and returns the picture."""
    center = int(pixel[1]), int(pixel[0])
    radius = max(6, round(min(picture.shape[:2]) / 50))
    thickness = max(2, radius // 4)
    for color, width in (((0, 0, 0), thickness + 2), (_RING, thickness)):
        cv2.circle(picture, center, radius, color, width, cv2.LINE_AA)
    return picture
