"""Softmax attention by library kernels: "flash" of JAX for TPU, and "cudnn" for NVIDIA GPUs.

Arguments and results are those of the implementations in ``ops/softmax.py``. The kernels need
aligned numbers of positions and equal numbers of channels, so arrays are padded with zeros, and
padded keys are masked.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as tpu

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import at_least_float32, promoted_dtype

# Edge of the TPU kernel's tiles. With tiles of 1024 and 512 channels, its backward pass exceeds the
# vector memory of the chip.
_TILE = 512
_MOST_CHANNELS = 1024


def _fill(x: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Pads the end of each axis with zeros, up to these sizes."""
    return jnp.pad(x, [(0, size - n) for n, size in zip(x.shape, sizes, strict=True)])


def _ceil(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _tile(positions: int) -> int:
    return min(_TILE, _ceil(positions, tpu.NUM_LANES))


def flash(theta, phi, g, mask, scale):
    """JAX's Pallas flash attention for TPU, for any number of positions."""
    *leading, n, c = theta.shape
    m, d = g.shape[-2:]
    if not fits_flash(theta, phi, g):
        types = ", ".join(str(x.dtype) for x in (theta, phi, g))
        raise InputError(
            f"implementation is 'flash', but theta, phi, g have types {types} and {c}, {c}, {d} "
            f"channels; use bfloat16 or float32 with up to {_MOST_CHANNELS} channels, or "
            "implementation='chunked'"
        )
    tile_n, tile_m = _tile(n), _tile(m)
    n_padded, m_padded = _ceil(n, tile_n), _ceil(m, tile_m)
    batch = math.prod(leading)
    q, k, v = (
        _fill(x.reshape(batch, 1, *x.shape[-2:]), (batch, 1, positions, max(c, d)))
        for x, positions in ((theta, n_padded), (phi, m_padded), (g, m_padded))
    )
    segments = None
    if mask is not None or m_padded != m:
        real = jnp.ones((batch, m), bool) if mask is None else mask.reshape(batch, m)
        real = jnp.pad(real, ((0, 0), (0, m_padded - m))).astype(jnp.int32)
        segments = tpu.SegmentIds(jnp.ones((batch, n_padded), jnp.int32), real)
    sizes = tpu.BlockSizes(
        block_b=1,
        block_q=tile_n,
        block_k_major=tile_m,
        block_k=tile_m,
        block_q_major_dkv=tile_n,
        block_q_dkv=tile_n,
        block_k_major_dkv=tile_m,
        block_k_dkv=tile_m,
        block_q_dq=tile_n,
        block_k_major_dq=tile_m,
        block_k_dq=tile_m,
    )
    dtype = promoted_dtype(q, k, v)  # the result has the type of the queries
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    y = tpu.flash_attention(q, k, v, segment_ids=segments, sm_scale=scale, block_sizes=sizes)
    return at_least_float32(y[:, 0, :n, :d].reshape(*leading, n, d))


def fits_flash(*arrays: jax.Array) -> bool:
    """Whether the TPU kernel supports the types and channels of these queries, keys and values."""
    return all(
        x.dtype in (jnp.bfloat16, jnp.float32) and x.shape[-1] <= _MOST_CHANNELS for x in arrays
    )


def fits_cudnn(*channels: int) -> bool:
    """Whether cuDNN on this machine supports queries and values with these numbers of channels."""
    return all(n <= cudnn_channels() and n % 8 == 0 for n in channels)


def cudnn_channels() -> int:
    """The most channels that cuDNN's attention supports on this machine.

    Zero without an NVIDIA GPU of generation Ampere or newer.
    """
    device = jax.devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return 0
    capability = float(device.compute_capability)  # 8.0 is Ampere, 9.0 Hopper
    return 256 if capability >= 9 else 128 if capability >= 8 else 0


def cudnn(theta, phi, g, mask, scale):
    """cuDNN's flash attention in bfloat16. Numbers of channels must be multiples of eight."""
    *leading, n, c = theta.shape
    m, d = g.shape[-2:]
    if not cudnn_channels():
        raise InputError(
            "implementation is 'cudnn', but this machine has no NVIDIA GPU of the Ampere "
            "generation or newer; use implementation='auto'"
        )
    if not fits_cudnn(c, d):
        raise InputError(
            f"implementation is 'cudnn', but theta, phi, g have {c}, {c}, {d} channels; use "
            f"multiples of 8 up to {cudnn_channels()}, or implementation='chunked'"
        )
    batch = math.prod(leading)
    real = jnp.full((batch,), m, jnp.int32)
    if mask is not None:
        # cuDNN supports padding only at the end. Softmax does not depend on the order of the keys.
        order = jnp.argsort(~mask, axis=-1, stable=True)[..., None]
        phi, g = (jnp.take_along_axis(x, order, axis=-2) for x in (phi, g))
        real = jnp.sum(mask, axis=-1, dtype=jnp.int32).reshape(batch)
    # The backward pass of cuDNN needs even numbers of positions.
    q, k, v = (
        _fill(
            x.astype(jnp.bfloat16).reshape(batch, x.shape[-2], 1, x.shape[-1]),
            (batch, _ceil(x.shape[-2], 2), 1, max(c, d)),
        )
        for x in (theta, phi, g)
    )
    y = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        query_seq_lengths=jnp.full((batch,), n, jnp.int32),
        key_value_seq_lengths=real,
        implementation="cudnn",
    )
    return at_least_float32(y[:, :n, 0, :d].reshape(*leading, n, d))
