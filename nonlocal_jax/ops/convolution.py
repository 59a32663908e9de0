"""Convolution over any number of axes, with a weight gradient that cuDNN can compute.

The weight gradient of a dilated convolution slides dy over x in steps of the dilation. XLA for
NVIDIA GPUs does not recognize this as a backward filter. It calls a forward convolution whose
window is as large as the feature map (``make check-cuda-hlo`` shows it). For such GPUs, ``conv``
therefore computes the same sum from the phases of x and dy, see ``_phases``.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import check_floating


def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    dilations: Sequence[int],
    precision: jax.lax.PrecisionLike,
    strides: Sequence[int] | None = None,
) -> jax.Array:
    """Convolves ``[B, *S, C]`` with ``[*K, C, D]``, which has as many axes K as S."""
    last = x.ndim - 1
    spatial = range(1, last)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides or (1,) * len(dilations),
        padding=[(d * (k // 2),) * 2 for d, k in zip(dilations, kernel.shape[:-2], strict=True)],
        rhs_dilation=dilations,
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            lhs_spec=(0, last, *spatial),
            rhs_spec=(last, last - 1, *range(last - 1)),
            out_spec=(0, last, *spatial),
        ),
        precision=precision,
    )


def _phases(x: jax.Array, dilations: Sequence[int]) -> jax.Array:
    """Splits ``[B, *S, C]`` into the maps of every d-th position: ``[B * prod(d), *S/d, C]``.

    Pads the end of each axis with zeros to a multiple of its d. An axis with d = 1 is unchanged, so
    frames that are sharded over devices are not gathered.
    """
    pads = [(0, -size % d) for size, d in zip(x.shape[1:-1], dilations, strict=True)]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    sizes = [size // d for size, d in zip(x.shape[1:-1], dilations, strict=True)]
    split = [n for pair in zip(sizes, dilations, strict=True) for n in pair]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    last = x.ndim - 1
    x = x.transpose(0, *range(2, last, 2), *range(1, last, 2), last)
    return x.reshape(-1, *sizes, x.shape[-1])


def _weight_gradient(
    x: jax.Array,
    dy: jax.Array,
    kernel: jax.Array,
    dilations: Sequence[int],
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    (gradient,) = jax.linear_transpose(lambda k: _convolve(x, k, dilations, precision), kernel)(dy)
    return gradient


def _phase_weight_gradient(
    x: jax.Array,
    dy: jax.Array,
    kernel: jax.Array,
    dilations: Sequence[int],
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Computes the same sum as an undilated gradient: no phase reads pixels of another phase."""
    phases, ones = functools.partial(_phases, dilations=dilations), (1,) * len(dilations)
    return _weight_gradient(phases(x), phases(dy), kernel, ones, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dilated(
    x: jax.Array,
    kernel: jax.Array,
    dilations: tuple[int, ...],
    precision: jax.lax.PrecisionLike,
) -> jax.Array:
    return _convolve(x, kernel, dilations, precision)


def _forward(
    x: jax.Array,
    kernel: jax.Array,
    dilations: tuple[int, ...],
    precision: jax.lax.PrecisionLike,
) -> tuple:
    # Not ``_dilated``: JAX can differentiate this in forward mode, as Hessians need.
    return _convolve(x, kernel, dilations, precision), (x, kernel)


def _backward(
    dilations: tuple[int, ...], precision: jax.lax.PrecisionLike, arguments: tuple, dy: jax.Array
) -> tuple:
    x, kernel = arguments
    (dx,) = jax.linear_transpose(lambda x: _convolve(x, kernel, dilations, precision), x)(dy)
    options = {"dilations": dilations, "precision": precision}
    # The program may be compiled for another platform than the one that traces it. On other
    # platforms, the phases only add copies. On TPU, they cause 0.78 GB of memory traffic instead of
    # 0.56 GB.
    dkernel = jax.lax.platform_dependent(
        x,
        dy,
        kernel,
        cuda=functools.partial(_phase_weight_gradient, **options),
        default=functools.partial(_weight_gradient, **options),
    )
    return dx, dkernel


_dilated.defvjp(_forward, _backward)


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Convolves the last axes of S, which are padded with zeros on both sides as in PyTorch.

    In two dimensions, with a kernel of size K x L, stride s and dilation d::

        y[i, j] = sum_kl x[s i + d (k - K // 2), s j + d (l - L // 2)] kernel[k, l]

    A kernel with fewer spatial axes than x acts on the last ones. A 2-D kernel convolves a clip
    ``[B, T, H, W, C]`` frame by frame.

    Programs for NVIDIA GPUs compute the weight gradient of a dilated convolution with stride 1 as
    that of an undilated convolution. First derivatives of such a convolution must be in reverse
    mode (``jax.grad``, ``jax.vjp``). ``jax.jvp`` and ``jax.jacfwd`` raise a ``TypeError``. Higher
    derivatives may be in both modes: ``jax.hessian``, and ``jax.jvp`` of ``jax.grad``, work.

    Args:
      x: Feature map ``[B, *S, C]``.
      kernel: Weights ``[*K, C, D]`` with odd sizes K, and at most as many axes K as S.
      stride: One number, or one for each axis of K.
      dilation: One number, or one for each axis of K.
      precision: Precision of the products, also in the gradients, see ``jax.lax.Precision``. With
        None, JAX rounds float32 operands to bfloat16 on TPUs and to TF32 on NVIDIA GPUs.

    Returns:
      ``[B, *S', D]``. S' is S divided by the stride, rounded up.

    Raises:
      InputError: The shapes do not fit, a stride or dilation is less than 1, or an array does not
        have a floating type.
    """
    check_floating(x=x, kernel=kernel)
    axes = kernel.ndim - 2
    strides, dilations = ((n,) * axes if np.ndim(n) == 0 else tuple(n) for n in (stride, dilation))
    if not (
        x.ndim >= kernel.ndim >= 3
        and x.shape[-1] == kernel.shape[-2]
        and all(size % 2 for size in kernel.shape[:-2])
        and len(strides) == len(dilations) == axes
        and all(isinstance(n, int | np.integer) and n >= 1 for n in strides + dilations)
    ):
        raise InputError(
            f"x has shape {x.shape}, kernel has shape {kernel.shape}, stride is {stride}, dilation "
            f"is {dilation}; use x [B, *S, C] and kernel [*K, C, D], where K has only odd sizes "
            "and at most as many axes as S; use a positive integer for stride and for dilation, or "
            "one for each axis of K"
        )
    leading = (1,) * (x.ndim - kernel.ndim)
    kernel = kernel.reshape(leading + kernel.shape)
    strides, dilations = leading + strides, leading + dilations
    # Along an axis where the kernel has size 1, the dilation changes nothing.
    dilations = tuple(d if k > 1 else 1 for d, k in zip(dilations, kernel.shape[:-2], strict=True))
    if max(dilations) > 1 and max(strides) == 1:
        return _dilated(x, kernel, dilations, precision)
    return _convolve(x, kernel, dilations, precision, strides)
