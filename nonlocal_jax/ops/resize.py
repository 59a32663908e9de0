"""Bilinear resizing, equal to PyTorch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import at_least_float32, check_floating


def _positions(rows: Any, size: int, new_size: int, align_corners: bool) -> tuple[Any, Any]:
    """The positions of output rows in the input, times ``scale``, and ``scale``. Both are exact."""
    xp = jnp if is_symbolic_dim(size) or is_symbolic_dim(new_size) else np
    if align_corners:
        source, scale = rows * (size - 1), xp.maximum(new_size - 1, 1)
    else:
        source, scale = (2 * rows + 1) * size - new_size, 2 * new_size
    return xp.clip(source, 0, (size - 1) * scale), scale


def bilinear_weights(size: int, new_size: int, align_corners: bool) -> np.ndarray | jax.Array:
    """The interpolation matrix ``[new_size, size]`` of one axis.

    It is constant, in float64, unless a size is symbolic.
    """
    xp = jnp if is_symbolic_dim(size) or is_symbolic_dim(new_size) else np
    row, column = xp.arange(new_size)[:, None], xp.arange(size)[None]
    source, scale = _positions(row, size, new_size, align_corners)
    return xp.maximum(scale - xp.abs(source - column * scale), 0) / scale


def _fits(n: Any) -> bool:
    return is_symbolic_dim(n) or (isinstance(n, int | np.integer) and n >= 1)


def resize(x: jax.Array, size: tuple[int, int], *, align_corners: bool = False) -> jax.Array:
    """Resizes ``[..., H, W, C]`` to ``[..., *size, C]`` by bilinear interpolation.

    The result is that of ``torch.nn.functional.interpolate(mode="bilinear")``, without
    antialiasing. Row i of the H' output rows is interpolated at this position of the H input rows::

        max((i + 0.5) H / H' - 0.5, 0)    align_corners=False
        i (H - 1) / (H' - 1)              align_corners=True

    Columns use the same formula. The resize is computed as two products with small matrices,
    so the gradient is a matrix product too.

    Args:
      x: Floating-point feature map ``[..., H, W, C]``.
      size: The new (H', W'). They and the size of ``x`` may be symbolic dimensions of
        ``jax.export``.
      align_corners: Selects the formula of the position.

    Returns:
      ``[..., H', W', C]`` in the type of ``x``, computed in at least float32.

    Raises:
      InputError: The input has fewer than three dimensions, has no position or is not
        floating-point, or ``size`` is not two positive integers.
    """
    check_floating(x=x)
    if x.ndim < 3 or 0 in x.shape[-3:-1] or np.shape(size) != (2,) or not all(map(_fits, size)):
        raise InputError(
            f"x has shape {x.shape} and size is {size}; use x [..., H, W, C] with at least one "
            "position, and a size of two positive integers"
        )
    if x.shape[-3:-1] == tuple(size):
        return x
    y = at_least_float32(x)
    for axis, equation in ((-3, "oh,...hwc->...owc"), (-2, "ow,...hwc->...hoc")):
        if y.shape[axis] != size[axis + 3]:
            weights = bilinear_weights(y.shape[axis], size[axis + 3], align_corners)
            weights = jnp.asarray(weights, y.dtype)
            y = jnp.einsum(equation, weights, y, precision=jax.lax.Precision.HIGHEST)
    return y.astype(x.dtype)
