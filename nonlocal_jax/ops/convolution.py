"""Dilated convolution whose weight gradient is a small convolution on GPUs as well.

The weight gradient of a dilated convolution slides the whole map of dy over x, dilation pixels at
a time. XLA for NVIDIA GPUs does not recognize it: in place of cuDNN's backward filter it calls a
forward convolution whose window is as large as the map (``make check-cuda-hlo``).
"""

import functools

import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError


def _convolve(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    pads = [(dilation * (size // 2),) * 2 for size in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _phases(x: jax.Array, dilation: int) -> jax.Array:
    """``[B, H, W, C]`` to ``[B d d, H/d, W/d, C]``: the d x d maps of every d-th row and column.

    Zeros fill the sides up to multiples of d.
    """
    x = jnp.pad(x, ((0, 0), *((0, -size % dilation) for size in x.shape[1:3]), (0, 0)))
    b, h, w, c = x.shape
    x = x.reshape(b, h // dilation, dilation, w // dilation, dilation, c)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, h // dilation, w // dilation, c)


def _weight_gradient(x: jax.Array, dy: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    (gradient,) = jax.linear_transpose(lambda k: _convolve(x, k, dilation), kernel)(dy)
    return gradient


def _phase_weight_gradient(
    x: jax.Array, dy: jax.Array, kernel: jax.Array, dilation: int
) -> jax.Array:
    """The same sum over pixels, one phase after the other: none sees another's pixels."""
    return _weight_gradient(_phases(x, dilation), _phases(dy, dilation), kernel, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dilated_conv(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    return _convolve(x, kernel, dilation)


def _forward(x: jax.Array, kernel: jax.Array, dilation: int) -> tuple[jax.Array, tuple]:
    return _convolve(x, kernel, dilation), (x, kernel)


def _backward(dilation: int, arguments: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = arguments
    (dx,) = jax.linear_transpose(lambda x: _convolve(x, kernel, dilation), x)(dy)
    # Chosen by what is compiled for, which need not be where this runs. Elsewhere the phases only
    # cost the copies: on TPU 0.78 GB of memory traffic in place of 0.56.
    dkernel = jax.lax.platform_dependent(
        x,
        dy,
        kernel,
        cuda=functools.partial(_phase_weight_gradient, dilation=dilation),
        default=functools.partial(_weight_gradient, dilation=dilation),
    )
    return dx, dkernel


_dilated_conv.defvjp(_forward, _backward)


def dilated_conv(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """y[i, j] = sum_kl x[i + d (k - K/2), j + d (l - K/2)] kernel[k, l], zero outside of x.

    ``jax.lax.conv_general_dilated`` with stride 1 and an output as large as the input. Compiled for
    NVIDIA GPUs, the weight gradient is that of an undilated convolution over the d x d maps of
    every d-th pixel, which is the same sum; elsewhere it is the ordinary one. Has a gradient in
    reverse mode only.

    Args:
      x: ``[..., H, W, C]``.
      kernel: ``[K, L, C, D]``, odd sizes.
      dilation: d, in pixels.

    Returns:
      ``[..., H, W, D]``.

    Raises:
      InputError: the shapes do not fit.
    """
    fits = x.ndim >= 3 and kernel.ndim == 4 and x.shape[-1] == kernel.shape[2]
    if not (fits and all(size % 2 for size in kernel.shape[:2]) and dilation >= 1):
        raise InputError(
            "need x [..., H, W, C], kernel [K, L, C, D] with odd K and L, and dilation >= 1; "
            f"got {x.shape}, {kernel.shape} and {dilation}"
        )
    y = _dilated_conv(x.reshape(-1, *x.shape[-3:]), kernel, dilation)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])
