"""Bilinear resizing, equal to PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import at_least_float32


def bilinear_weights(size: int, new_size: int, align_corners: bool) -> np.ndarray:
    """The interpolation matrix ``[new_size, size]`` of one axis, float64."""
    out = np.arange(new_size)
    if align_corners:
        source = out * ((size - 1) / (new_size - 1) if new_size > 1 else 0.0)
    else:
        source = np.maximum((out + 0.5) * (size / new_size) - 0.5, 0.0)
    low = np.minimum(np.floor(source).astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    fraction = source - low
    weights = np.zeros((new_size, size))
    weights[out, low] += 1 - fraction
    weights[out, high] += fraction
    return weights


def resize(x: jax.Array, size: tuple[int, int], *, align_corners: bool = False) -> jax.Array:
    """Resizes ``[..., H, W, C]`` to ``[..., *size, C]`` by bilinear interpolation.

    The result is that of ``torch.nn.functional.interpolate(mode="bilinear")``, without
    antialiasing. Row i of the H' output rows is interpolated at this position of the H input rows::

        max((i + 0.5) H / H' - 0.5, 0)    align_corners=False
        i (H - 1) / (H' - 1)              align_corners=True

    Columns use the same formula. The resize is computed as two products with small constant
    matrices, so the gradient is a matrix product too.

    Args:
      x: Feature map ``[..., H, W, C]``.
      size: The new (H', W').
      align_corners: Selects the formula of the position.

    Returns:
      ``[..., H', W', C]`` in the type of ``x``, computed in at least float32.

    Raises:
      InputError: The input has fewer than three dimensions, or ``size`` is not two positive
        integers.
    """
    if x.ndim < 3 or len(size) != 2 or min(size) < 1:
        raise InputError(
            f"x has shape {x.shape} and size is {size}; use x [..., H, W, C] and a size of two "
            "positive integers"
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
