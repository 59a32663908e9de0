"""The global context block. Options turn it into other blocks, such as squeeze-and-excitation."""

import functools
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax import ops
from nonlocal_jax.blocks._positions import Axes, on_positions, read_feature_map
from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import Constructor, initializers
from nonlocal_jax.layers.norm import NormFn, apply_norm

# PyTorch's LayerNorm: epsilon is 1e-5 (Flax: 1e-6), and the variance is computed in two passes.
LayerNorm = Constructor(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)

Pooling = Literal["attention", "average"]
POOLINGS = get_args(Pooling)
FUSIONS = ("add", "multiply")


class _ChannelTransform(nn.Module):
    """t(c) = W2 ReLU(norm(W1 c)), or t(c) = W2 c without a ratio. W2 is initialized to zero."""

    ratio: float | None
    norm: NormFn | None
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, context: jax.Array, train: bool) -> jax.Array:
        channels = context.shape[-1]
        if self.ratio is not None:
            context = nn.Dense(
                max(int(channels * self.ratio), 1),
                dtype=self.dtype,
                kernel_init=initializers.torch_default,
                bias_init=initializers.torch_default_bias(channels),
                name="conv1",
            )(context)
            if self.norm is not None:
                context = apply_norm(self.norm(name="norm", dtype=self.dtype), context, train=train)
            context = nn.relu(context)
        zeros = nn.initializers.zeros
        return nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, name="conv2")(context)


class GlobalContextBlock(nn.Module):
    """The global context block on feature maps ``[B, *S, C]``.

    ::

        z_i  = x_i * sigmoid(t_mul(c)) + t_add(c)
        c    = sum_j a_j x_j
        a_j  = softmax over j of conv_mask(x_j)
        t(c) = W2 ReLU(norm(W1 c))

    x_i is the input and z_i is the output at position i, with C channels. The context c is one
    vector for all positions i. conv_mask is a 1x1 convolution with bias from C to 1 channel. With
    ``pooling="average"``, c is the mean of x. The transforms t_mul and t_add have the formula of t,
    each with its own weights. ``fusion`` chooses which of them are used. W1 maps from C to
    C * ``ratio`` channels, and W2 maps back to C channels.

    W2 is initialized to zero. With only "add", the block starts as the identity. With "multiply",
    the sigmoid starts at one half.

    Source: Cao et al., GCNet (arXiv:1904.11492), eq. 5. The convention is that of mmcv's
    ``ContextBlock``: the context is computed from x itself, and the norm is over the channels.

    With other options, it is another block of section 3 of the paper. ``ratio=None`` uses one
    linear map, t(c) = W2 c (simplified non-local block, eq. 4). ``pooling="average",
    fusion=("multiply",), norm=None`` is squeeze-and-excitation.

    Attributes:
      ratio: Channels of W1 divided by C, or None for t(c) = W2 c.
      pooling: Computation of the context, "attention" or "average".
      fusion: Transforms that are used: "add", "multiply" or both.
      axes: The positions that share a context: "spacetime" (all), "space" (those of a frame) or
        "time" (the same pixel in all frames).
      norm: Constructor of the norm inside t, or None. Its input is one vector per context, so batch
        statistics are unreliable. Use a layer norm.
      dtype: Type of the computation. None promotes the input with the float32 parameters.
    """

    ratio: float | None = 0.25
    pooling: Pooling = "attention"
    fusion: tuple[str, ...] = ("add",)
    axes: Axes = "spacetime"
    norm: NormFn | None = LayerNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        """Applies the block.

        Args:
          x: Feature map ``[B, *S, C]``.
          train: Whether a batch norm uses the statistics of the batch instead of the running ones.
            A layer norm ignores this.
          mask: Mask ``[B, *S]``, False where x is padding. Padding does not contribute to the
            context.

        Returns:
          ``[B, *S, C]`` in the type of ``x``.

        Raises:
          InputError: A type, a shape or an attribute is wrong.
        """
        if self.pooling not in POOLINGS:
            raise InputError(f"pooling is {self.pooling!r}; use one of {', '.join(POOLINGS)}")
        if not self.fusion or set(self.fusion) - set(FUSIONS):
            raise InputError(
                f"fusion is {self.fusion!r}; use ('add',), ('multiply',) or ('add', 'multiply')"
            )

        x, mask = read_feature_map(x, self.axes, mask)
        fuse = functools.partial(self._fuse, train=train)
        return on_positions(fuse, x, axes=self.axes, mask=mask)

    def _fuse(self, x: jax.Array, mask: jax.Array | None, *, train: bool) -> jax.Array:
        """Computes z on positions ``[..., N, C]``."""
        score = None
        if self.pooling == "attention":
            w = nn.Dense(
                1, dtype=self.dtype, kernel_init=initializers.kaiming_fan_in, name="conv_mask"
            )
            score = w(x)[..., 0]
        c = ops.context_pool(x, score, mask=mask)

        transform = functools.partial(
            _ChannelTransform, ratio=self.ratio, norm=self.norm, dtype=self.dtype
        )
        z = x
        if "multiply" in self.fusion:
            z = z * jax.nn.sigmoid(transform(name="channel_mul_conv")(c, train=train))
        if "add" in self.fusion:
            z = z + transform(name="channel_add_conv")(c, train=train)
        return z.astype(x.dtype)
