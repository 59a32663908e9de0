"""How the logits of the windows of an image become logits at the size of the image.

Two resizes and the mean over overlapping windows are linear, and separate for rows and columns. So
the logits at every pixel are a sum over windows, with one matrix for each axis::

    y[p, q] = sum_windows sum_ij rows[p, i] z[i, j] columns[q, j]

where z is the output of the network for a window, at its stride.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops.resize import bilinear_weights


class Windows(NamedTuple):
    """The windows along one axis of an image.

    Attributes:
      size: Size of the image.
      window: Size of the windows.
      starts: Starts of the windows. The last one ends at the border.
    """

    size: int
    window: int
    starts: tuple[int, ...]


def cut(size: int, crop: int | None, stride: int | None) -> Windows:
    """Returns the windows along one axis. Without ``crop``, there is one.

    Raises:
      InputError: The windows do not cover all pixels.
    """
    if crop is None:
        return Windows(size, size, (0,))
    if not 0 < stride <= crop:
        raise InputError(
            f"stride {stride} does not cover the image with windows of {crop}; "
            "use a positive stride that is at most the crop"
        )
    number = max(size - crop + stride - 1, 0) // stride + 1
    starts = tuple(max(min(i * stride, size - crop), 0) for i in range(number))
    return Windows(size, min(size, crop), starts)


def weights(
    windows: Windows, logits: int, size: int, align_corners: bool, flipped: bool = False
) -> np.ndarray:
    """Returns the matrices of one axis, float64 ``[windows, size, logits]``.

    Args:
      windows: The windows of the image that the network sees.
      logits: Number of rows of the logits of a window.
      size: Number of rows of the result. The image has been resized from this size.
      align_corners: Convention of both resizes, see ``ops.resize``.
      flipped: Whether the image has been flipped.
    """
    to_window = bilinear_weights(logits, windows.window, align_corners)
    matrices = np.zeros((len(windows.starts), windows.size, logits))
    count = np.zeros((windows.size, 1))
    for matrix, start in zip(matrices, windows.starts, strict=True):
        matrix[start : start + windows.window] = to_window
        count[start : start + windows.window] += 1
    matrices /= count
    if size != windows.size:
        matrices = bilinear_weights(windows.size, size, align_corners) @ matrices
    return matrices[:, ::-1] if flipped else matrices


class Tile(NamedTuple):
    """The matrices of one axis for a tile of an image, without most of their zeros.

    Attributes:
      firsts: The first row of the logits of each window that the tile needs, ``[windows]``.
      weights: The weights of this row and those after it, ``[windows, rows, band]``.
    """

    firsts: np.ndarray | jax.Array
    weights: np.ndarray | jax.Array


class Tiles(NamedTuple):
    """The matrices of one axis for all tiles: those of ``Tile``, with a leading axis."""

    firsts: np.ndarray
    weights: np.ndarray

    def tile(self, index: int) -> Tile:
        """Returns one tile, or the last one if there are fewer."""
        index = min(index, len(self.firsts) - 1)
        return Tile(self.firsts[index], self.weights[index])


def tiles(
    windows: Windows,
    logits: int,
    size: int,
    align_corners: bool,
    flipped: bool,
    tile: int,
    canvas: int,
) -> Tiles:
    """Returns the matrices of one axis for tiles of ``tile`` rows, see ``weights``.

    The logits are padded to ``canvas`` rows, which is how many each tile gets here, see ``banded``.
    The rows of the last tile that are not in the image have no weights.
    """
    matrices = weights(windows, logits, size, align_corners, flipped)
    pads = (0, 0), (0, -size % tile), (0, canvas - logits)
    matrices = np.pad(matrices, pads).reshape(len(matrices), -1, tile, canvas).swapaxes(0, 1)
    return Tiles(np.argmax(np.any(matrices, axis=2), axis=-1).astype(np.int32), matrices)


def banded(axes: Sequence[Tiles], unit: int) -> list[Tiles]:
    """Leaves out rows of the logits without weights, but keeps ``unit`` times 1, 2, 4 and so on."""
    ends = [
        np.max(np.arange(1, t.weights.shape[-1] + 1) * np.any(t.weights, axis=2), axis=-1)
        for t in axes
    ]
    rows = max(int(np.max(end - t.firsts)) for end, t in zip(ends, axes, strict=True))
    rows = unit << max(math.ceil(math.log2(rows / unit)), 0)
    result = []
    for firsts, matrices in axes:
        band = min(matrices.shape[-1], rows)
        firsts = np.minimum(firsts, matrices.shape[-1] - band)
        columns = firsts[..., None, None] + np.arange(band)
        result.append(Tiles(firsts, np.take_along_axis(matrices, columns, axis=-1)))
    return result


@jax.jit
def merge(logits: Sequence[Sequence[jax.Array]], rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Computes the logits at every pixel, ``[B, H, W, classes]``.

    Args:
      logits: Those of each window ``[B, h, w, classes]``, in rows and columns of windows.
      rows: The matrices of the rows, ``[windows, H, h]``.
      columns: The matrices of the columns, ``[windows, W, w]``.
    """
    x = jnp.stack([jnp.stack(row) for row in logits])
    einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    x = einsum("yoh,yxbhwc->xbowc", rows.astype(x.dtype), x)
    return einsum("xpw,xbowc->bopc", columns.astype(x.dtype), x)
