"""The logits of overlapping windows of an image, and their average in any part of the image."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import at_least_float32
from nonlocal_jax.ops.resize import bilinear_part

ApplyFn = Callable[[jax.Array], jax.Array]


def starts(size: int, crop: int, stride: int) -> list[int]:
    """Returns the starts of windows along one axis. The last window ends at the border."""
    number = max(size - crop + stride - 1, 0) // stride + 1
    return [max(min(i * stride, size - crop), 0) for i in range(number)]


class WindowLogits:
    """The logits of windows of images, at the stride of the network.

    They are small. Logits at every pixel are computed part by part, see ``sum``.

    Args:
      apply_fn: Maps images to logits of any size. It runs on one window at a time.
      images: Normalized RGB ``[B, H, W, 3]``.
      crop: (height, width) of a window. Default: the size of the images.
      stride: (vertical, horizontal) distance of windows, at most ``crop``.
      align_corners: Convention of the resize of a window's logits to the window's size.

    Attributes:
      size: (height, width) of the images.
      num_classes: Number of classes.
      dtype: Type of the logits, at least float32.

    Raises:
      InputError: The windows do not cover all pixels.
    """

    def __init__(
        self,
        apply_fn: ApplyFn,
        images: jax.Array,
        crop: tuple[int, int] | None,
        stride: tuple[int, int] | None,
        align_corners: bool,
    ):
        crop, stride = crop or images.shape[1:3], stride or images.shape[1:3]
        if not all(0 < s <= c for s, c in zip(stride, crop, strict=True)):
            raise InputError(
                f"stride {tuple(stride)} does not cover the image with windows of {tuple(crop)}; "
                "use a positive stride that is at most the crop"
            )
        self.size = images.shape[1:3]
        self._window = min(crop[0], self.size[0]), min(crop[1], self.size[1])
        self._starts = tuple(map(starts, self.size, crop, stride))
        self._align_corners = align_corners
        self._logits = {}
        height, width = self._window
        for y in self._starts[0]:
            for x in self._starts[1]:
                logits = apply_fn(images[:, y : y + height, x : x + width])
                self._logits[y, x] = at_least_float32(jnp.asarray(logits))
        *_, self.num_classes = logits.shape
        self.dtype = self._logits[y, x].dtype

    def sum(self, starts: tuple[int, int], shape: tuple[int, int]) -> tuple[jax.Array, np.ndarray]:
        """Returns the sum of the logits of all windows at every pixel of a part of the images.

        Args:
          starts: The first row and the first column of the part.
          shape: (height, width) of the part.

        Returns:
          Logits ``[B, *shape, classes]``, and how many were added, ``[1, *shape, 1]``.
        """
        total = None
        for place, logits in self._logits.items():
            if not all(map(_overlap, place, self._window, starts, shape)):
                continue  # it would add zeros
            sizes = logits.shape[1:3]
            axes = [
                self._axis(*axis)
                for axis in zip(place, self._window, sizes, starts, shape, strict=True)
            ]
            total = _add(total, logits, *zip(*axes, strict=True), shape=shape)
        counts = map(_count, self._starts, self._window, starts, shape)
        count = np.multiply.outer(*counts)[None, ..., None]
        return total, count.astype(self.dtype)

    def _axis(
        self, place: int, window: int, size: int, start: int, number: int
    ) -> tuple[int, int, np.ndarray]:
        """Returns what adds a window to a part, along one axis.

        This is the first row in the part, the first row of the logits, and the weights of the
        interpolation. The number of rows does not depend on the place of the window. Those outside
        of the window have no weights.
        """
        rows = min(number, window)
        offset = min(max(place - start, 0), number - rows)
        first, weights = bilinear_part(
            size, window, self._align_corners, start + offset - place, rows
        )
        return offset, first, weights.astype(self.dtype)


def _count(places: list[int], window: int, start: int, number: int) -> np.ndarray:
    """Returns how many windows cover each row of a part."""
    row = np.arange(start, start + number)
    place = np.array(places)[:, None]
    return ((place <= row) & (row < place + window)).sum(axis=0)


def _overlap(place: int, window: int, start: int, number: int) -> bool:
    return place < start + number and start < place + window


def interpolate(
    x: jax.Array, firsts: tuple[int, int], weights: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """Resizes a part of ``[B, H, W, C]`` with two matrices, see ``ops.resize.bilinear_part``."""
    sizes = [w.shape[1] for w in weights]
    x = jax.lax.dynamic_slice(x, (0, *firsts, 0), (len(x), *sizes, x.shape[-1]))
    for equation, w in zip(("oh,bhwc->bowc", "ow,bhwc->bhoc"), weights, strict=True):
        x = jnp.einsum(equation, w, x, precision=jax.lax.Precision.HIGHEST)
    return x


@functools.partial(jax.jit, donate_argnames="total", static_argnames="shape")
def _add(
    total: jax.Array | None,
    logits: jax.Array,
    offsets: tuple[int, int],
    firsts: tuple[int, int],
    weights: tuple[jax.Array, jax.Array],
    *,
    shape: tuple[int, int],
) -> jax.Array:
    resized = interpolate(logits, firsts, weights)
    if total is None:
        total = jnp.zeros((len(logits), *shape, logits.shape[-1]), logits.dtype)
    place = 0, *offsets, 0
    part = jax.lax.dynamic_slice(total, place, resized.shape)
    return jax.lax.dynamic_update_slice(total, part + resized, place)
