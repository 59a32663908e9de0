"""The global context block. Options turn it into other blocks, such as squeeze-and-excitation."""

import functools
from collections.abc import Callable
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax import ops
from nonlocal_jax.blocks._positions import Axes, on_positions, read_feature_map
from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import Constructor, initializers
from nonlocal_jax.layers.dense import Dense
from nonlocal_jax.layers.norm import NormFn, apply_norm, check_norm
from nonlocal_jax.ops._numerics import promoted_dtype

# PyTorch's LayerNorm: epsilon is 1e-5 (Flax: 1e-6), and the variance is computed in two passes.
LayerNorm = Constructor(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)

Pooling = Literal["attention", "average"]
POOLINGS = get_args(Pooling)
Fusion = Literal["add", "multiply"]
FUSIONS = get_args(Fusion)


class _ChannelTransform(nn.Module):
    """t(c) = W2 ReLU(norm(W1 c)), or t(c) = W2 c without a ratio. W2 is initialized to zero."""

    dense: Callable[..., nn.Dense]
    norm: Callable[[], nn.Module] | None
    ratio: float | None
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, context: jax.Array, train: bool) -> jax.Array:
        channels = context.shape[-1]
        if self.ratio is not None:
            context = self.dense(
                max(int(channels * self.ratio), 1),
                kernel_init=self.kernel_init,
                bias_init=initializers.torch_default_bias(channels),
                name="conv1",
            )(context)
            if self.norm is not None:
                context = apply_norm(self.norm(name="norm"), context, train=train)
            context = nn.relu(context)
        zeros = nn.initializers.zeros
        return self.dense(channels, kernel_init=zeros, name="conv2")(context)


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
      ratio: Channels of W1 divided by C, at most 1, or None for t(c) = W2 c.
      pooling: Computation of the context, "attention" or "average".
      fusion: Transforms that are used: "add", "multiply" or both.
      axes: The positions that share a context: "spacetime" (all), "space" (those of a frame) or
        "time" (the same pixel in all frames).
      frames: Number of consecutive frames that share a context, or None for all. See
        :class:`NonLocalBlock`.
      norm: Constructor of the norm inside t, or None. Its input is one vector per context, so batch
        statistics are unreliable. Use a layer norm.
      dtype: Type of the computation. None promotes the input with the parameters.
      param_dtype: Type of the parameters.
      precision: Precision of the products, as in ``nn.Dense``.
      kernel_init: Initializer of W1.
      axis_name: Axis of the user's own ``jax.shard_map`` that positions are split over, as in
        :class:`NonLocalBlock`. The norm does not need it: all devices have the same context.
    """

    ratio: float | None = 0.25
    pooling: Pooling = "attention"
    fusion: tuple[Fusion, ...] = ("add",)
    axes: Axes = "spacetime"
    frames: int | None = None
    norm: NormFn | None = LayerNorm
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    precision: jax.lax.PrecisionLike = None
    kernel_init: nn.initializers.Initializer = initializers.torch_default
    axis_name: str | None = None

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
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise InputError(
                f"ratio is {self.ratio!r}, but it is the channels of W1 divided by those of x; use "
                "a number above 0 and up to 1, such as 1/16, or None"
            )

        check_norm(self.norm)
        x, mask = read_feature_map(x, self.axes, self.frames, mask, train)
        fuse = functools.partial(self._fuse, train=train)
        return on_positions(fuse, x, axes=self.axes, frames=self.frames, mask=mask)

    def _fuse(self, x: jax.Array, mask: jax.Array | None, *, train: bool) -> jax.Array:
        """Computes z on positions ``[..., N, C]``."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = functools.partial(Dense, **types, precision=self.precision)
        score = None
        if self.pooling == "attention":
            w = dense(1, kernel_init=initializers.kaiming_fan_in, name="conv_mask")
            score = w(x)[..., 0]
        c = ops.context_pool(
            x,
            score,
            mask=mask,
            axis_name=None if self.is_initializing() else self.axis_name,
            precision=self.precision,
        )

        transform = functools.partial(
            _ChannelTransform,
            dense=dense,
            norm=None if self.norm is None else functools.partial(self.norm, **types),
            ratio=self.ratio,
            kernel_init=self.kernel_init,
        )
        dtype = promoted_dtype(x, self.dtype or self.param_dtype)
        z = x.astype(dtype)
        if "multiply" in self.fusion:
            t = transform(name="channel_mul_conv")(c, train)
            z = z * jax.nn.sigmoid(t.astype(dtype))
        if "add" in self.fusion:
            z = z + transform(name="channel_add_conv")(c, train).astype(dtype)
        return z.astype(x.dtype)
