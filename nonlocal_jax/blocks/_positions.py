"""From feature maps ``[B, *S, C]`` to flat positions ``[..., N, C]`` and back.

One code path for sequences, images and clips: which axes a block relates is only a reshape.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import check_mask

AXES = ("spacetime", "space", "time")


def check_feature_map(x: jax.Array, axes: str, mask: jax.Array | None = None) -> None:
    """Requires ``[B, *S, C]`` with one to three axes S, three where space and time part.

    Raises:
      InputError: quoting the shape, or that of a mask which is not ``[B, *S]``.
    """
    check_mask(mask, x.shape[:-1])
    if axes not in AXES:
        raise InputError(f"axes must be one of {', '.join(AXES)}; got {axes!r}")
    if not 3 <= x.ndim <= 5:
        raise InputError(
            "need [B, L, C], [B, H, W, C] or [B, T, H, W, C], "
            f"one to three axes between batch and channels; got {x.shape}"
        )
    if axes == "time" and x.ndim != 5:
        raise InputError(f'axes="time" needs a clip [B, T, H, W, C]; got {x.shape}')
    if axes == "space" and x.ndim < 4:
        raise InputError(f'axes="space" needs [B, H, W, C] or [B, T, H, W, C]; got {x.shape}')


def to_positions(x: jax.Array, axes: str) -> jax.Array:
    """``[B, *S, C]`` to ``[..., N, C]``, N the positions that see each other.

    "spacetime" relates all of S: ``[B, prod(S), C]``. "space" relates the positions of one frame:
    ``[B, T, H*W, C]``. "time" relates one place over all frames: ``[B, H, W, T, C]``.
    """
    batch, *spatial, channels = x.shape
    if axes == "time":
        return jnp.moveaxis(x, 1, -2)
    frames = spatial[:1] if axes == "space" and len(spatial) == 3 else []
    positions = math.prod(spatial[len(frames) :])
    return x.reshape(batch, *frames, positions, channels)


def mask_positions(mask: jax.Array | None, axes: str) -> jax.Array | None:
    """``to_positions`` of a mask ``[B, *S]``."""
    return None if mask is None else to_positions(mask[..., None], axes)[..., 0]


def from_positions(y: jax.Array, spatial: Sequence[int], axes: str) -> jax.Array:
    """The inverse of ``to_positions`` for a map of size ``spatial``; channels may differ."""
    if axes == "time":
        return jnp.moveaxis(y, -2, 1)
    return y.reshape(y.shape[0], *spatial, y.shape[-1])


def max_pool_space(x: jax.Array) -> jax.Array:
    """Max pooling by two along space, never along time; an odd rest is left out, as in PyTorch."""
    window = (1, 2, 2) if x.ndim == 5 else (2,) * (x.ndim - 2)
    return nn.max_pool(x, window, strides=window)


def max_pool_mask(mask: jax.Array | None) -> jax.Array | None:
    """The mask ``[B, *S]`` after ``max_pool_space``: what is pooled from padding too is padding.

    A map with an odd edge loses its last row to the pooling; so does one that is padded there.
    """
    if mask is None:
        return None
    return max_pool_space((~mask)[..., None].astype(jnp.float32))[..., 0] == 0
