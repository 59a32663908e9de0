"""The fully convolutional segmentation head, with or without a block between its convolutions."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax.backbones.resnet import conv
from nonlocal_jax.layers.norm import BatchNorm


class ConvNorm(nn.Module):
    """ReLU(bn(conv(x))): mmcv's ``ConvModule`` with norm."""

    features: int
    kernel_size: int = 3
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = conv(self.features, self.kernel_size, dtype=self.dtype, name="conv")(x)
        bn = BatchNorm(use_running_average=not train, dtype=self.dtype, name="bn")
        return nn.relu(bn(x))


class FCNHead(nn.Module):
    """Convolutions, a block behind the first of them, and a 1x1 classifier.

    mmsegmentation's ``FCNHead`` (no block), ``NLHead``, ``DNLHead`` and ``GCHead``:

      y = convs[1](block(convs[0](x)));  y = conv_cat([x, y]);  logits = conv_seg(dropout(y))

    Dropout takes whole channels of an image (Dropout2d).

    Attributes:
      num_classes: channels of the logits.
      channels: of every convolution in between.
      num_convs: convolutions before the concatenation.
      kernel_size: of the convolutions.
      concat_input: put x beside y and convolve once more.
      block: constructor of the block, or None.
      dropout: share of the channels dropped in training.
      dtype: of the computation; None promotes the input with the float32 parameters.
    """

    num_classes: int
    channels: int
    num_convs: int = 2
    kernel_size: int = 3
    concat_input: bool = True
    block: Callable[..., nn.Module] | None = None
    dropout: float = 0.1
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps ``[B, H, W, C]`` to logits ``[B, H, W, num_classes]``, at least float32."""
        conv_norm = functools.partial(ConvNorm, self.channels, self.kernel_size, self.dtype)
        y = x
        for i in range(self.num_convs):
            y = conv_norm(name=f"convs_{i}")(y, train=train)
            if i == 0 and self.block is not None:
                y = self.block(name="block")(y, train=train)
        if self.concat_input:
            y = conv_norm(name="conv_cat")(jnp.concatenate([x, y], -1), train=train)
        y = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(y)
        logits = nn.Dense(
            self.num_classes,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.01),
            name="conv_seg",
        )(y)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
