"""What the devices need to know of an image: arrays of a few shapes, made on the host."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nonlocal_jax.evaluation._padding import padded_side
from nonlocal_jax.evaluation._windows import Tiles, Windows, banded, tiles
from nonlocal_jax.evaluation.inference import Pass, image_passes


class Shape(NamedTuple):
    """The shapes of a pass.

    Attributes:
      windows: Number of windows along each axis.
      padded: (height, width) of the padded windows.
      canvas: (height, width) of the padded logits of a window. Many ``padded`` have the same, so
        that they share the programs that read the logits.
      bands: Rows and columns of the logits that a tile needs.
    """

    windows: tuple[int, int]
    padded: tuple[int, int]
    canvas: tuple[int, int]
    bands: tuple[int, int]


class Layout(NamedTuple):
    """An image, and how its result is computed.

    Attributes:
      size: (height, width) of the image.
      passes: What the network sees of it.
      tiles: The matrices of each pass, for rows and for columns.
      shapes: The shapes of each pass. Images with equal shapes share a batch.
    """

    size: tuple[int, int]
    passes: Sequence[Pass]
    tiles: Sequence[Sequence[Tiles]]
    shapes: tuple[Shape, ...]


class Grid(NamedTuple):
    """The units of all sizes.

    Attributes:
      stride: Rows of an image for one row of logits.
      context: Number of devices that share the rows of an image.
      tile: Rows and columns of a tile.
    """

    stride: int
    context: int
    tile: int

    @property
    def multiples(self) -> tuple[int, int]:
        """What the height and the width of a padded window are multiples of."""
        return self.stride * self.context, self.stride


def padded_shape(pass_: Pass, crop: tuple[int, int] | None, grid: Grid) -> tuple[tuple, tuple]:
    """Returns the (height, width) of the padded windows of a pass, and of their canvas."""
    sizes = [axis.window for axis in pass_.axes]
    units = crop or (min(pass_.scale),) * 2
    padded = tuple(map(padded_side, sizes, units, grid.multiples))
    if crop is None:  # one canvas for windows up to 2:1, the next one for those up to 4:1
        doublings = max(1, math.ceil(math.log2(max(sizes) / units[0])))
        units = (units[0] * 2**doublings,) * 2
    canvas = tuple(
        math.ceil(n / multiple) * multiple // grid.stride
        for n, multiple in zip(units, grid.multiples, strict=True)
    )
    return padded, canvas


@functools.lru_cache(maxsize=64)
def _tiles(
    axes: tuple[Windows, Windows],
    size: tuple[int, int],
    flipped: bool,
    align_corners: bool,
    grid: Grid,
    canvas: tuple[int, int],
) -> list[Tiles]:
    """Returns the matrices of a pass, for rows and for columns."""
    return banded(
        [
            tiles(axis, math.ceil(axis.window / grid.stride), n, align_corners, flip, grid.tile, c)
            for axis, n, flip, c in zip(axes, size, (False, flipped), canvas, strict=True)
        ],
        # Twice the rows of a tile of an image that is not resized, so most images need no more.
        unit=max(2 * grid.tile // grid.stride, 1),
    )


def lay_out(image: np.ndarray, protocol: Mapping[str, Any], grid: Grid) -> Layout:
    """Lays out an image.

    Args:
      image: RGB, uint8 ``[H, W, 3]``.
      protocol: The keyword arguments of ``multi_scale_inference``.
      grid: The units.

    Raises:
      InputError: The image has the wrong type or shape.
    """
    names = "base_size", "ratios", "flip", "crop", "stride"
    passes = image_passes(image, **{name: protocol[name] for name in names})
    size, matrices, shapes = image.shape[:2], [], []
    for pass_ in passes:
        padded, canvas = padded_shape(pass_, protocol["crop"], grid)
        both = _tiles(pass_.axes, size, pass_.flipped, protocol["align_corners"], grid, canvas)
        matrices.append(both)
        windows = tuple(len(axis.starts) for axis in pass_.axes)
        bands = tuple(axis.weights.shape[-1] for axis in both)
        shapes.append(Shape(windows, padded, canvas, bands))
    return Layout(size, passes, matrices, tuple(shapes))
