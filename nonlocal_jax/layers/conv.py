"""Convolutions as PyTorch's ResNets and segmentation heads use them."""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nonlocal_jax import ops
from nonlocal_jax.layers.dense import promote_dtype
from nonlocal_jax.layers.initializers import kaiming_fan_out
from nonlocal_jax.layers.norm import BatchNorm, NormFn, apply_norm
from nonlocal_jax.ops._numerics import check_floating
from nonlocal_jax.sharding import are_positions_split


class Conv(nn.Module):
    """A convolution without bias on ``[B, *S, C]``, zero-padded on both sides as in PyTorch.

    A kernel with fewer axes than S acts on the last ones. A 2-D convolution therefore takes images
    ``[B, H, W, C]``, and clips ``[B, T, H, W, C]`` frame by frame. See ``ops.conv``.

    Attributes:
      features: Number of output channels.
      kernel_size: Odd sizes, one for each axis of the kernel. One number k means (k, k).
      stride: One number, or one for each axis of the kernel.
      dilation: One number, or one for each axis of the kernel.
      dtype: Type of the computation. None promotes the input with the float32 parameters.
      precision: Precision of the products, see ``ops.conv``.
    """

    features: int
    kernel_size: int | Sequence[int] = 3
    stride: int | Sequence[int] = 1
    dilation: int | Sequence[int] = 1
    dtype: jax.typing.DTypeLike | None = None
    precision: jax.lax.PrecisionLike = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[B, *S, C]`` to ``[B, *S', features]``. S' is S / stride, rounded up."""
        check_floating(x=x)
        size = self.kernel_size
        size = (size, size) if np.ndim(size) == 0 else tuple(size)
        shape = (*size, x.shape[-1], self.features)
        kernel = self.param("kernel", kaiming_fan_out, shape, jnp.float32)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        conv = functools.partial(
            ops.conv, stride=self.stride, dilation=self.dilation, precision=self.precision
        )
        leading = x.shape[: x.ndim - len(size) - 1]
        if len(leading) < 2 or are_positions_split():
            return conv(x, kernel)
        # The frames become images of the batch. This takes half the time on CPUs and a quarter of
        # the memory traffic on TPUs. XLA would gather frames that are split over devices.
        y = conv(x.reshape(math.prod(leading), *x.shape[len(leading) :]), kernel)
        return y.reshape(*leading, *y.shape[1:])


class ConvNorm(nn.Module):
    """Computes ReLU(norm(conv(x))), like the ``ConvModule`` of mmcv.

    Attributes:
      features: Number of output channels.
      kernel_size: See ``Conv``.
      norm: Constructor of the norm, see ``apply_norm``.
      dtype: Type of the computation. None promotes the input with the float32 parameters.
      precision: Precision of the products, see ``ops.conv``.
    """

    features: int
    kernel_size: int | Sequence[int] = 3
    norm: NormFn = BatchNorm
    dtype: jax.typing.DTypeLike | None = None
    precision: jax.lax.PrecisionLike = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps ``[B, *S, C]`` to ``[B, *S, features]``."""
        options = {"dtype": self.dtype, "precision": self.precision}
        x = Conv(self.features, self.kernel_size, **options, name="conv")(x)
        return nn.relu(apply_norm(self.norm(name="bn", dtype=self.dtype), x, train=train))
