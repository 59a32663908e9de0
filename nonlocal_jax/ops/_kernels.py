"""Softmax attention by library kernels: "flash" of JAX for TPU, and "cudnn" for NVIDIA GPUs.

Arguments and results are those of the implementations in ``ops/softmax.py``. The kernels need
aligned numbers of positions and equal numbers of channels, so arrays are padded with zeros, and
padded keys are masked.
"""

import contextlib
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as tpu

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import at_least_float32, promoted_dtype

# Edge of the TPU kernel's tiles, and the most float32 numbers in a tile of positions and channels.
# With larger ones, its backward pass exceeds the vector memory of the chip.
_TILE = 512
_TILE_SIZE_IN_FLOAT32 = 2**17
_MOST_CHANNELS = 1024


def _fill(x: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Pads the end of each axis with zeros, up to these sizes."""
    return jnp.pad(x, [(0, size - n) for n, size in zip(x.shape, sizes, strict=True)])


def _ceil(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _tile(positions: int, channels: int, dtype: jnp.dtype) -> int:
    lanes = tpu.NUM_LANES
    most = _TILE
    if dtype == jnp.float32:
        most = min(most, _TILE_SIZE_IN_FLOAT32 // channels // lanes * lanes)
    return min(most, _ceil(positions, lanes))


def flash(theta, phi, g, mask, scale, precision):
    """JAX's Pallas flash attention for TPU, for any number of positions.

    Its products have the precision of the type of the arguments. The compiler of Pallas kernels
    supports only one bfloat16 pass or full float32.
    """
    del precision
    *leading, n, c = theta.shape
    m, d = g.shape[-2:]
    if not fits_flash(theta, phi, g):
        types = ", ".join(str(x.dtype) for x in (theta, phi, g))
        raise InputError(
            f"implementation is 'flash', but theta, phi, g have types {types} and {c}, {c}, {d} "
            f"channels; use bfloat16 or float32 with up to {_MOST_CHANNELS} channels, or "
            "implementation='chunked'"
        )
    dtype = promoted_dtype(theta, phi, g)  # the result has the type of the queries
    tile_n, tile_m = (_tile(positions, max(c, d), dtype) for positions in (n, m))
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
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    precision = "default" if dtype == jnp.bfloat16 else "highest"
    context = functools.partial(jax.default_matmul_precision, precision)
    kernel = functools.partial(tpu.flash_attention, sm_scale=scale, block_sizes=sizes)
    y = _call(kernel, context, (q, k, v), {"segment_ids": segments})
    return at_least_float32(y[:, 0, :n, :d].reshape(*leading, n, d))


def fits_flash(*arrays: jax.Array) -> bool:
    """Whether the TPU kernel supports the types and channels of these queries, keys and values."""
    return all(
        x.dtype in (jnp.bfloat16, jnp.float32) and x.shape[-1] <= _MOST_CHANNELS for x in arrays
    )


def fits_cudnn(*channels: int) -> bool:
    """Whether cuDNN supports queries and values with these numbers of channels."""
    return all(n <= cudnn_channels() and n % 8 == 0 for n in channels)


def cudnn_channels() -> int:
    """The most channels that cuDNN's attention supports: 256 on Hopper and newer GPUs."""
    capability = _capability()  # 8.0 is Ampere, 9.0 Hopper
    if capability is None or capability >= 9:
        return 256
    return 128 if capability >= 8 else 0


def _capability() -> float | None:
    """Compute capability of this process's NVIDIA GPU. None without one, or before its first use.

    ``jax.devices()`` would initialize the devices, and ``jax.distributed.initialize`` fails after
    that.
    """
    from jax._src import xla_bridge  # there is no public way to ask for this

    if not xla_bridge.backends_are_initialized():
        return None
    device = jax.devices()[0]
    is_nvidia = device.platform == "gpu" and "cuda" in device.client.platform_version
    return float(device.compute_capability) if is_nvidia else None


@contextlib.contextmanager
def _assume_hopper():
    """JAX traces cuDNN's attention only if this process has a GPU; a program may be for another."""
    # Private modules are imported where they are used, so that a change of them affects only this.
    from jax._src.cudnn import fused_attention_stablehlo

    answers = {
        "check_cudnn_version": lambda: 91000,
        "check_compute_capability": lambda capability: True,
        "is_cuda_compute_capability_equal": lambda capability: False,
    }
    functions = vars(fused_attention_stablehlo)
    original = {name: functions[name] for name in answers}
    if _capability() is None:
        functions.update(answers)
    try:
        yield
    finally:
        functions.update(original)


def cudnn(theta, phi, g, mask, scale, precision):
    """cuDNN's flash attention in bfloat16. Numbers of channels must be multiples of eight."""
    del precision  # the kernel has one
    *leading, n, c = theta.shape
    m, d = g.shape[-2:]
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
    kernel = functools.partial(jax.nn.dot_product_attention, scale=scale, implementation="cudnn")
    lengths = {
        "query_seq_lengths": jnp.full((batch,), n, jnp.int32),
        "key_value_seq_lengths": real,
    }
    y = _call(kernel, _assume_hopper, (q, k, v), lengths)
    return at_least_float32(y[:, :n, 0, :d].reshape(*leading, n, d))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _call(kernel, context, arrays, options):
    """Calls ``kernel(*arrays, **options)`` with the context manager ``context()``.

    JAX traces the kernels of the gradient later. They need the context too.
    """
    with context():
        return kernel(*arrays, **options)


def _call_forward(kernel, context, arrays, options):
    with context():
        return jax.vjp(functools.partial(kernel, **options), *arrays)


def _call_backward(kernel, context, pullback, dy):
    with context():
        return pullback(dy), None


_call.defvjp(_call_forward, _call_backward)
