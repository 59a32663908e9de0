"""Bilinear resizing with the numbers of PyTorch."""

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
    """Bilinear resize of ``[..., H, W, C]`` to ``[..., *size, C]``, separable, never antialiased.

    Equal to ``torch.nn.functional.interpolate(mode="bilinear")`` up and down: source position
    (i + 0.5) H/H' - 0.5 clamped at 0, or i (H - 1)/(H' - 1) with ``align_corners``. Written as two
    products with small constant matrices, which also makes the gradient a product.

    Raises:
      InputError: ``x`` has fewer than three dimensions or ``size`` is not two positive integers.
    """
    if x.ndim < 3 or len(size) != 2 or min(size) < 1:
        raise InputError(f"need x [..., H, W, C] and a positive size; got {x.shape} and {size}")
    if x.shape[-3:-1] == tuple(size):
        return x
    y = at_least_float32(x)
    for axis, equation in ((-3, "oh,...hwc->...owc"), (-2, "ow,...hwc->...hoc")):
        if y.shape[axis] != size[axis + 3]:
            weights = bilinear_weights(y.shape[axis], size[axis + 3], align_corners)
            weights = jnp.asarray(weights, y.dtype)
            y = jnp.einsum(equation, weights, y, precision=jax.lax.Precision.HIGHEST)
    return y.astype(x.dtype)
