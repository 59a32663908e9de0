"""Normalization of images, on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def normalize(
    images: jax.Array | np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    """(images - mean) / std, per channel.

    Args:
      images: ``[..., C]``, gray levels from 0 to 255 as integers or floats.
      mean: of each channel, in gray levels.
      std: of each channel, in gray levels.
      dtype: of the computation and the result; None keeps float64 and is float32 otherwise.
    """
    if dtype is None:
        dtype = jnp.float64 if images.dtype == jnp.float64 else jnp.float32
    images = jnp.asarray(images, dtype)
    return (images - jnp.asarray(mean, dtype)) / jnp.asarray(std, dtype)
