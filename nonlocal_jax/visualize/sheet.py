"""Draws training examples and their labels on one sheet."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nonlocal_jax.data import IGNORE_INDEX
from nonlocal_jax.errors import InputError
from nonlocal_jax.visualize.overlays import color_overlay, legend

_TEXT = (32, 32, 32)
_GRAY = (110, 110, 110)
_WHITE = (255, 255, 255)
_STRIPES = np.array([(250, 250, 250), (205, 0, 110)], np.uint8)

# The longer side of a picture is reduced to at most the second number of pixels, or enlarged by the
# largest whole factor up to the first.
_SMALL, _LARGE = 256, 448
# Width / height that the sheet should have.
_ASPECT = 1.5
_GAP, _MARGIN = 6, 24
# The font in pixels, or this part of the width of an image with its labels if that is more.
_FONT, _FONT_PART = 16, 1 / 32


def example_sheet(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    captions: Sequence[str],
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
    title: str = "",
) -> np.ndarray:
    """Draws each image beside the same image in the colors of its labels.

    Ignored pixels (255) are striped. A legend lists the classes with their part of all pixels, the
    most frequent first. Small images are enlarged, and large ones reduced.

    Args:
      images: RGB, uint8 ``[H, W, 3]``, all of the same size.
      labels: Class indices or 255, ``[H, W]``, one for each image.
      captions: A line of text for each image, such as its id.
      names: Names of the classes.
      palette: Colors of the classes, RGB from 0 to 255.
      title: A line of text above the images.

    Returns:
      RGB, uint8.

    Raises:
      InputError: There are no images, an image is not uint8 RGB, or labels have a different size.
    """
    if len(images) == 0:
        raise InputError("there are no images; give at least one")
    pairs = [_pair(*example, palette) for example in zip(images, labels, strict=True)]
    height, width = pairs[0].shape[:2]
    size = max(_FONT, round(width * _FONT_PART))
    font, small = ImageFont.load_default(size), ImageFont.load_default(round(0.875 * size))
    cell = width + _MARGIN, height + 2 * size + _GAP
    columns = min(range(1, len(pairs) + 1), key=lambda n: _badness(n, len(pairs), cell))
    rows = math.ceil(len(pairs) / columns)
    # A sheet of few small images must be as wide as its title.
    inner = max(columns * cell[0] - _MARGIN, math.ceil(font.getlength(title)), 400)
    panel = _legend(np.stack(labels), names, palette, inner, size)

    top = _MARGIN + 2 * size
    bottom = top + rows * cell[1]
    sheet = Image.new("RGB", (panel.shape[1] + 2 * _MARGIN, bottom + len(panel) + _MARGIN), _WHITE)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, _TEXT, font)
    for index, (picture, caption) in enumerate(zip(pairs, captions, strict=True)):
        row, column = divmod(index, columns)
        x, y = _MARGIN + column * cell[0], top + row * cell[1]
        sheet.paste(Image.fromarray(picture), (x, y))
        text = _shorten(caption, small, width)
        draw.text((x, y + height + _GAP // 2), text, _GRAY, small)
    # The legend begins with a gap.
    sheet.paste(Image.fromarray(panel), (_MARGIN - size // 2, bottom))
    return np.asarray(sheet)


def _badness(columns: int, number: int, cell: tuple[int, int]) -> float:
    """Returns how far a sheet with so many columns is from the proportions of a good one."""
    rows = math.ceil(number / columns)
    aspect = columns * cell[0] / (rows * cell[1])
    empty = (rows * columns - number) / number
    return abs(math.log(aspect / _ASPECT)) + empty


def _pair(image: np.ndarray, label: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns the image and its labels in color, side by side, in the size of the sheet."""
    longer = max(label.shape)
    factor = max(1, _SMALL // longer) if longer <= _LARGE else _LARGE / longer
    size = tuple(max(1, round(n * factor)) for n in label.shape[::-1])
    smooth = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    image = cv2.resize(image, size, interpolation=smooth)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    # Gray under the colors of the classes, so that they are those of the legend.
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    colored = color_overlay(gray, label, palette, alpha=0.75)
    colored = np.where((label == IGNORE_INDEX)[..., None], _stripes(label.shape), colored)
    gap = np.full((size[1], _GAP, 3), 255, np.uint8)
    return np.concatenate([image, gap, colored], axis=1)


def _stripes(size: tuple[int, int]) -> np.ndarray:
    """Returns diagonal stripes, uint8 ``[H, W, 3]``."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    return _STRIPES[(rows + columns) // 5 % 4 // 3]


def _legend(
    labels: np.ndarray,
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
    width: int,
    size: int,
) -> np.ndarray:
    counts = np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)
    swatches = {c: np.full((size, size, 3), palette[c], np.uint8) for c in range(len(names))}
    swatches[IGNORE_INDEX] = _stripes((size, size))
    texts = {**dict(enumerate(names)), IGNORE_INDEX: "ignored"}
    present = [c for c in np.argsort(-counts, kind="stable") if counts[c]]
    entries = [(f"{texts[c]}, {_percent(counts[c] / labels.size)}", swatches[c]) for c in present]
    return legend(entries, width, size)


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %" if part >= 0.01 else "< 1 %"


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Replaces the middle of a text that is too wide by an ellipsis."""
    short = text
    while font.getlength(short) > width and len(text) > 2:
        text = text[: len(text) // 2] + text[len(text) // 2 + 1 :]
        short = f"{text[: len(text) // 2]}...{text[len(text) // 2 :]}"
    return short
