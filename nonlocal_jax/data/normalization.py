"""Normalization of images, on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def normalize(
    images: jax.Array | np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """Normalizes each channel: (images - mean) / std.

    Args:
      images: ``[..., C]``, gray levels from 0 to 255, integers or floats.
      mean: Mean of each channel, in gray levels.
      std: Standard deviation of each channel, in gray levels.
      dtype: Type of the computation and of the result. Default: float64 for float64 images, else
        float32.
    """
    if dtype is None:
        dtype = jnp.float64 if images.dtype == jnp.float64 else jnp.float32
    shape = (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(x, dtype).reshape(shape) for x in (mean, std))
    return (jnp.asarray(images, dtype) - mean) / std
