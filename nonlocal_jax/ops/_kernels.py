"""Softmax attention by the kernels of others: JAX's for TPU, cuDNN's for NVIDIA GPUs.

Forms as those of ``ops.softmax``. The kernels want aligned lengths and equal widths: zeros fill up
what is missing, and masks keep them out.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as tpu

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import at_least_float32

# Edge of the TPU kernel's tiles. With 1024 and width 512 its backward pass leaves no room in the
# chip's vector memory.
_TILE = 512
_WIDEST = 1024


def _fill(x: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Zeros at the end of each axis, up to these sizes."""
    return jnp.pad(x, [(0, size - n) for n, size in zip(x.shape, sizes, strict=True)])


def _ceil(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _tile(positions: int) -> int:
    return min(_TILE, _ceil(positions, tpu.NUM_LANES))


def flash(theta, phi, g, mask, scale):
    """JAX's Pallas flash attention for TPU, with any number of positions and any two widths."""
    *leading, n, c = theta.shape
    m, d = g.shape[-2:]
    if not fits_flash(theta, phi, g):
        types = ", ".join(str(x.dtype) for x in (theta, phi, g))
        raise InputError(
            f"implementation flash takes bfloat16 and float32 up to width {_WIDEST}; "
            f"got {types} of widths {c} and {d}"
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
    dtype = jnp.result_type(q, k, v)  # the result has the type of the queries
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    y = tpu.flash_attention(q, k, v, segment_ids=segments, sm_scale=scale, block_sizes=sizes)
    return at_least_float32(y[:, 0, :n, :d].reshape(*leading, n, d))


def fits_flash(*arrays: jax.Array) -> bool:
    """Whether the TPU kernel takes queries, keys and values of these types and widths."""
    return all(x.dtype in (jnp.bfloat16, jnp.float32) and x.shape[-1] <= _WIDEST for x in arrays)


def fits_cudnn(*widths: int) -> bool:
    """Whether cuDNN, on the GPU that there is, takes queries and values of these widths."""
    return all(width <= cudnn_width() and width % 8 == 0 for width in widths)


def cudnn_width() -> int:
    """The widest attention of cuDNN on this machine's GPU; zero where there is none."""
    device = jax.devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return 0
    capability = float(device.compute_capability)  # 8.0 is Ampere, 9.0 Hopper
    return 256 if capability >= 9 else 128 if capability >= 8 else 0


def cudnn(theta, phi, g, mask, scale):
    """cuDNN's flash attention, in bfloat16, for widths that are multiples of eight."""
    *leading, n, c = theta.shape
    m, d = g.shape[-2:]
    if not cudnn_width():
        raise InputError("implementation cudnn needs cuDNN on an NVIDIA GPU, Ampere or newer")
    if not fits_cudnn(c, d):
        raise InputError(
            f"implementation cudnn takes widths that are multiples of 8 up to {cudnn_width()}; "
            f"got {c} and {d}"
        )
    batch = math.prod(leading)
    real = jnp.full((batch,), m, jnp.int32)
    if mask is not None:
        # It knows padding at the end only, and softmax does not mind the order of the keys.
        order = jnp.argsort(~mask, axis=-1, stable=True)[..., None]
        phi, g = (jnp.take_along_axis(x, order, axis=-2) for x in (phi, g))
        real = jnp.sum(mask, axis=-1, dtype=jnp.int32).reshape(batch)
    # Its backward pass takes even lengths only.
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
