"""Draws where a position of a clip attends, frame by frame."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import flax.linen as nn
import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nonlocal_jax.errors import InputError
from nonlocal_jax.visualize.overlays import attention_overlay, ring

_TEXT = (32, 32, 32)
_GRAY = (110, 110, 110)
_WHITE = (255, 255, 255)
_MAX_FRAMES = 8
# Frames are enlarged by a whole factor up to the first number of pixels per side, or reduced to at
# most the second.
_SMALL, _LARGE = 160, 224
_FONT, _GAP, _MARGIN = 15, 6, 16


def strongest_position(
    model: nn.Module, variables: Mapping[str, Any], clip: jax.Array, class_index: int
) -> tuple[int, int, int]:
    """Returns the position of a clip that contributes most to the logit of a class.

    The logits of a video network are the mean, over the positions of its last feature map, of a
    linear function of the features. The position has the largest value of this function.

    Args:
      model: The network, a ``models.VideoNet``.
      variables: Its variables.
      clip: Normalized RGB ``[1, T, H, W, 3]``.
      class_index: The class.

    Returns:
      (frame, row, column) of the center of the position, in the clip.
    """
    logits = np.asarray(_logits_of_positions(model, variables, clip))[0, ..., class_index]
    indices = np.unravel_index(logits.argmax(), logits.shape)
    sizes = zip(indices, clip.shape[1:4], logits.shape, strict=True)
    return tuple(int((2 * i + 1) * extent // (2 * n)) for i, extent, n in sizes)


@functools.partial(jax.jit, static_argnums=0)
def _logits_of_positions(
    model: nn.Module, variables: Mapping[str, Any], clip: jax.Array
) -> jax.Array:
    return model.apply(variables, clip, window=(1, 1, 1))


def attention_strip(
    frames: np.ndarray,
    weights: np.ndarray | None,
    position: Sequence[int],
    *lines: str,
) -> np.ndarray:
    """Draws frames of a clip, and below them the attention of one position.

    If the clip or the attention map has more than eight frames, eight parts of equal length are
    drawn. The weights of a part are added. It is drawn over its middle frame, or over the frame of
    the position. A ring marks the position. The brightness increases from the smallest to the
    largest weight in the whole clip, so that small differences are visible. The number below a
    frame is the sum of its weights, in percent of all weights.

    Args:
      frames: The clip, RGB, uint8 ``[T, H, W, 3]``.
      weights: Weights ``[T', H', W']`` of the position, see ``attention_map``, or None to draw only
        the frames. Negative weights are drawn as zero.
      position: (frame, row, column) of the position in the clip.
      *lines: Lines of text above the frames.

    Returns:
      RGB, uint8.

    Raises:
      InputError: The frames are not uint8 RGB, or the weights are not those of a clip.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise InputError(
            f"the frames are {frames.dtype} {frames.shape}; use uint8 RGB [T, H, W, 3]"
        )
    if weights is not None and np.ndim(weights) != 3:
        raise InputError(f"weights have the shape {np.shape(weights)}; use a map [T', H', W']")
    maps = None if weights is None else np.maximum(np.asarray(weights, np.float32), 0)
    number = min(_MAX_FRAMES, len(frames) if maps is None else len(maps))
    middles = (2 * np.arange(number) + 1) * len(frames) // (2 * number)
    own = position[0] * number // len(frames)  # the part of the position
    middles[own] = position[0]

    factor = _factor(max(frames.shape[1:3]))
    size = tuple(max(1, round(n * factor)) for n in frames.shape[2:0:-1])
    smooth = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    pictures = [cv2.resize(frames[i], size, interpolation=smooth) for i in middles]
    center = tuple(int((p + 0.5) * factor) for p in position[1:])
    marks = [center if part == own else None for part in range(number)]
    rows = [[ring(p.copy(), m) if m else p for p, m in zip(pictures, marks, strict=True)]]
    labels = [[f"frame {i}" for i in middles]]
    if maps is not None:
        parts = np.arange(len(maps)) * number // len(maps)
        summed = np.stack([maps[parts == part].sum(axis=0) for part in range(number)])
        least, largest = summed.min(), summed.max() - summed.min()
        arguments = zip(pictures, summed - least, marks, strict=True)
        rows.append([attention_overlay(*a, largest=largest) for a in arguments])
        total = max(summed.sum(), np.finfo(np.float32).tiny)
        labels.append([f"{100 * part.sum() / total:.0f} %" for part in summed])
    return _compose(rows, labels, lines)


def _factor(side: int) -> float:
    """Returns the factor by which frames of this size are enlarged or reduced."""
    return max(1, _SMALL // side) if side <= _LARGE else _LARGE / side


def _compose(
    rows: Sequence[Sequence[np.ndarray]],
    labels: Sequence[Sequence[str]],
    lines: Sequence[str],
) -> np.ndarray:
    """Arranges the pictures in rows, with a label below each, below the lines of text."""
    font, small = ImageFont.load_default(_FONT), ImageFont.load_default(_FONT - 2)
    height, width = rows[0][0].shape[:2]
    line = round(1.5 * _FONT)
    step = height + line + _GAP
    top = _MARGIN + line * len(lines)
    inner = max(
        len(rows[0]) * (width + _GAP) - _GAP, *(round(font.getlength(text)) for text in lines)
    )
    sheet = Image.new("RGB", (inner + 2 * _MARGIN, top + len(rows) * step + _MARGIN // 2), _WHITE)
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(lines):
        color = _GRAY if number else _TEXT
        draw.text((_MARGIN, _MARGIN + number * line - line // 4), text, color, font)
    for r, (pictures, texts) in enumerate(zip(rows, labels, strict=True)):
        for c, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
            x, y = _MARGIN + c * (width + _GAP), top + r * step
            sheet.paste(Image.fromarray(picture), (x, y))
            draw.text((x + width / 2, y + height + _GAP // 2), text, _GRAY, small, anchor="ma")
    return np.asarray(sheet)
