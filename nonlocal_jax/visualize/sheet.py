"""Draws training examples and their labels on one sheet."""

import math
from collections.abc import Callable, Sequence

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
# The longer side of a frame of a clip, and the largest number of them.
_FRAME, _FRAMES = 128, 8
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

    def draw_legend(width: int, size: int) -> np.ndarray:
        return _legend(np.stack(labels), names, palette, width, size)

    return _arrange(pairs, captions, title, draw_legend)


def clip_sheet(clips: Sequence[np.ndarray], captions: Sequence[str], title: str = "") -> np.ndarray:
    """Draws up to eight frames of each clip side by side: the first, the last, and those between.

    Args:
      clips: RGB, uint8 ``[T, H, W, 3]``, all of the same shape.
      captions: A line of text for each clip, such as its id and its class.
      title: A line of text above the clips.

    Returns:
      RGB, uint8.

    Raises:
      InputError: There are no clips.
    """
    if len(clips) == 0:
        raise InputError("there are no clips; give at least one")
    return _arrange([_strip(clip) for clip in clips], captions, title)


def _strip(clip: np.ndarray) -> np.ndarray:
    """Returns frames of a clip, side by side."""
    numbers = np.linspace(0, len(clip) - 1, min(len(clip), _FRAMES)).round().astype(int)
    longer = max(clip.shape[1:3])
    factor = max(1, _FRAME // longer) if longer <= _FRAME else _FRAME / longer
    size = tuple(max(1, round(n * factor)) for n in clip.shape[2:0:-1])
    smooth = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    frames = [cv2.resize(clip[n], size, interpolation=smooth) for n in numbers]
    gap = np.full((size[1], _GAP, 3), 255, np.uint8)
    return np.concatenate([part for frame in frames for part in (gap, frame)][1:], axis=1)


def _arrange(
    pictures: Sequence[np.ndarray],
    captions: Sequence[str],
    title: str,
    draw_legend: Callable[[int, int], np.ndarray] | None = None,
) -> np.ndarray:
    """Arranges pictures of one size in rows and columns, with a legend below."""
    height, width = pictures[0].shape[:2]
    size = max(_FONT, round(width * _FONT_PART))
    font, small = ImageFont.load_default(size), ImageFont.load_default(round(0.875 * size))
    cell = width + _MARGIN, height + 2 * size + _GAP
    columns = min(range(1, len(pictures) + 1), key=lambda n: _badness(n, len(pictures), cell))
    rows = math.ceil(len(pictures) / columns)
    # A sheet of few small images must be as wide as its title.
    inner = max(columns * cell[0] - _MARGIN, math.ceil(font.getlength(title)), 400)
    panel = draw_legend(inner, size) if draw_legend else np.empty((0, inner, 3), np.uint8)

    top = _MARGIN + 2 * size
    bottom = top + rows * cell[1]
    sheet = Image.new("RGB", (panel.shape[1] + 2 * _MARGIN, bottom + len(panel) + _MARGIN), _WHITE)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, _TEXT, font)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(index, columns)
        x, y = _MARGIN + column * cell[0], top + row * cell[1]
        sheet.paste(Image.fromarray(picture), (x, y))
        text = _shorten(caption, small, width)
        draw.text((x, y + height + _GAP // 2), text, _GRAY, small)
    if len(panel):
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
    colored = color_overlay(image, label, palette, alpha=0.75)
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
