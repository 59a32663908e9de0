"""Pictures of predictions and of attention; RGB arrays in, RGB arrays out."""

from collections.abc import Sequence

import chex
import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_TEXT = (32, 32, 32)
_BORDER = (160, 160, 160)
_WHITE = (255, 255, 255)
_RING = (80, 255, 120)

# Brightness of an image under a heat map.
_DIM = 0.55


def color_overlay(
    image: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]], alpha: float = 0.6
) -> np.ndarray:
    """The image with every pixel tinted in the color of its class.

    Args:
      image: uint8 RGB ``[H, W, 3]``.
      labels: ``[H, W]``, indices into the palette; other values, such as an ignored label, leave
        the image as it is.
      palette: RGB from 0 to 255 for each class.
      alpha: weight of the color.

    Returns:
      uint8 RGB ``[H, W, 3]``.
    """
    _check_image(image)
    chex.assert_shape(labels, image.shape[:2], custom_message="labels must fit the image")
    colors = np.asarray(palette, np.uint8)
    known = (labels >= 0) & (labels < len(colors))
    tint = colors[np.where(known, labels, 0)]
    blend = cv2.addWeighted(image, 1 - alpha, tint, alpha, 0)
    return np.where(known[..., None], blend, image)


def add_legend(
    image: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> np.ndarray:
    """Puts a legend of the classes that occur under a picture, the most frequent first.

    The picture itself is unchanged at the top left; only one narrower than a legend's entry is
    padded on the right.

    Args:
      image: uint8 RGB ``[H, W, 3]``.
      labels: ``[H, W]``; its values choose the entries.
      names: of the classes.
      palette: RGB from 0 to 255 for each class.

    Returns:
      uint8 RGB ``[H + legend, max(W, entry), 3]``.
    """
    _check_image(image)
    counts = np.bincount(labels[(labels >= 0) & (labels < len(names))], minlength=len(names))
    present = [c for c in np.argsort(-counts, kind="stable") if counts[c]]
    size = int(np.clip(image.shape[1] / 60, 12, 32))
    font = ImageFont.load_default(size)
    line, swatch, gap = round(1.7 * size), size, size // 2

    entries, x, y, right = [], gap, gap, image.shape[1]
    for c in present:
        end = x + swatch + gap + round(font.getlength(names[c])) + gap
        if end > image.shape[1] and x > gap:
            x, y, end = gap, y + line, end - x + gap
        entries.append((c, x, y))
        x, right = end + gap, max(right, end)
    panel = Image.new("RGB", (right, y + line + gap // 2), _WHITE)
    draw = ImageDraw.Draw(panel)
    for c, x, y in entries:
        box = (x, y, x + swatch, y + swatch)
        draw.rectangle(box, fill=tuple(int(v) for v in palette[c]), outline=_BORDER)
        draw.text((x + swatch + gap, y + swatch / 2), names[c], _TEXT, font, anchor="lm")
    panel = np.asarray(panel)
    padding = ((0, 0), (0, panel.shape[1] - image.shape[1]), (0, 0))
    return np.concatenate([np.pad(image, padding, constant_values=255), panel])


def attention_overlay(
    image: np.ndarray, weights: np.ndarray, pixel: tuple[int, int], alpha: float = 0.75
) -> np.ndarray:
    """A heat map of where one pixel looks, over the dimmed image, the pixel marked by a ring.

    Brightness is relative to the largest weight. Enlarge a tiny image first.

    Args:
      image: uint8 RGB ``[H, W, 3]``.
      weights: ``[H', W']``, not negative, as ``attention_map`` gives them.
      pixel: (row, column) of the pixel in the image.
      alpha: opacity of the heat map at the largest weight.

    Returns:
      uint8 RGB ``[H, W, 3]``.
    """
    _check_image(image)
    chex.assert_rank(weights, 2)
    height, width = image.shape[:2]
    heat = np.asarray(weights, np.float32)
    heat = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    heat = heat / max(heat.max(), np.finfo(np.float32).tiny)
    levels = np.round(255 * heat).astype(np.uint8)
    colors = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1]
    # The root brings out weights far below the largest.
    opacity = alpha * np.sqrt(heat)[..., None]
    picture = (1 - opacity) * _DIM * image + opacity * colors
    return _ring(np.round(picture).astype(np.uint8), pixel)


def _ring(picture: np.ndarray, pixel: tuple[int, int]) -> np.ndarray:
    center = int(pixel[1]), int(pixel[0])
    radius = max(3, round(min(picture.shape[:2]) / 50))
    thickness = max(1, radius // 4)
    for color, width in (((0, 0, 0), thickness + 2), (_RING, thickness)):
        cv2.circle(picture, center, radius, color, width, cv2.LINE_AA)
    return picture


def _check_image(image: np.ndarray) -> None:
    chex.assert_shape(image, (None, None, 3), custom_message="the image must be [H, W, 3]")
    chex.assert_type(image, np.uint8)
