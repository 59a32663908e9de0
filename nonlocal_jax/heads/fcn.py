"""The fully convolutional segmentation head, with or without a block between its convolutions."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax.layers import BatchNorm, ConvNorm, NormFn
from nonlocal_jax.layers.dense import Dense, promote_dtype
from nonlocal_jax.ops._numerics import at_least_float32


class FCNHead(nn.Module):
    """Convolutions, a block after the first of them, and a 1x1 classifier::

        y = convs[1](block(convs[0](x)))
        y = conv_cat([x, y])
        logits = conv_seg(dropout(y))

    x is the input. convs[0], convs[1] and conv_cat include a norm and a ReLU. [x, y] is the
    concatenation of channels. conv_seg is the classifier.

    These are the ``FCNHead`` (no block), ``NLHead``, ``DNLHead`` and ``GCHead`` of mmsegmentation.
    Dropout drops whole channels of an image (Dropout2d), and in clips whole channels of a frame.

    Attributes:
      num_classes: Number of channels of the logits.
      channels: Number of output channels of each convolution.
      num_convs: Number of convolutions before the concatenation.
      kernel_size: Kernel size of the convolutions.
      concat_input: Whether to concatenate x with y and to apply conv_cat.
      block: Constructor of the block, or None. It is called as ``block(name=...)(x, train=train)``.
      dropout: Probability that training drops a channel.
      norm: Constructor of the norms, see ``layers.apply_norm``. The block has its own.
      dtype: Type of the computation. None promotes the input with the float32 parameters.
      precision: Precision of the products, see ``ops.conv``.
    """

    num_classes: int
    channels: int
    num_convs: int = 2
    kernel_size: int = 3
    concat_input: bool = True
    block: Callable[..., nn.Module] | None = None
    dropout: float = 0.1
    norm: NormFn = BatchNorm
    dtype: jax.typing.DTypeLike | None = None
    precision: jax.lax.PrecisionLike = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps ``[B, *S, C]`` to logits ``[B, *S, num_classes]``, at least float32.

        S is (H, W) for images and (T, H, W) for clips.
        """
        options = {"dtype": self.dtype, "precision": self.precision}
        conv_norm = functools.partial(
            ConvNorm, self.channels, self.kernel_size, norm=self.norm, **options
        )
        y = x
        for i in range(self.num_convs):
            y = conv_norm(name=f"convs_{i}")(y, train)
            if i == 0 and self.block is not None:
                y = self.block(name="block")(y, train=train)
        if self.concat_input:
            both = jnp.concatenate(promote_dtype(x, y, dtype=self.dtype), -1)
            y = conv_norm(name="conv_cat")(both, train)
        y = nn.Dropout(self.dropout, broadcast_dims=(-3, -2), deterministic=not train)(y)
        logits = Dense(
            self.num_classes,
            **options,
            kernel_init=nn.initializers.normal(0.01),
            name="conv_seg",
        )(y)
        return at_least_float32(logits)
