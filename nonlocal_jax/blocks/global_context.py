"""The global context block and its relatives: simplified non-local and squeeze-and-excitation."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax import ops
from nonlocal_jax.blocks._mesh import block_input, split_like
from nonlocal_jax.blocks._positions import (
    check_feature_map,
    from_positions,
    mask_positions,
    to_positions,
)
from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import initializers
from nonlocal_jax.layers.norm import NormFn, apply_norm

# PyTorch's LayerNorm: epsilon 1e-5 (Flax has 1e-6), variance in two passes.
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)

POOLINGS = ("attention", "average")
FUSIONS = ("add", "multiply")


class _ChannelTransform(nn.Module):
    """t(c) = W2 ReLU(norm(W1 c)), or one linear map without a ratio; the last map starts at 0."""

    ratio: float | None
    norm: NormFn | None
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, context: jax.Array, *, train: bool) -> jax.Array:
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
    """z = x * sigmoid(t_mul(c)) + t_add(c), c one context vector for all positions.

      c = sum_j softmax_j(w . x_j) x_j          (pooling "attention"; "average" is the mean)
      t(c) = W2 ReLU(norm(W1 c)),  W1: C -> C * ratio

    GCNet (arXiv:1904.11492) eq. 5, in the convention of mmcv's ``ContextBlock``: the context is
    taken of x itself, the norm is over the channels of t, and with both fusions the multiplication
    comes first. W2 starts at zero: with "add" alone the block starts as the identity, and a gate of
    "multiply" starts at one half.

    The rest of the family of GCNet's section 3: ``ratio=None`` has one linear map in the place of t
    (simplified non-local, eq. 4); ``pooling="average", fusion=("multiply",), norm=None`` is
    squeeze-and-excitation.

    Attributes:
      ratio: width of the bottleneck over C; None for a single linear map.
      pooling: "attention" or "average".
      fusion: any of "add" and "multiply".
      axes: the positions that share a context: "spacetime", "space" or "time".
      norm: constructor of the norm inside t, or None. It acts on one vector per image, where
        batch statistics mean little: keep to a layer norm.
      dtype: of the computation; None promotes the input with the float32 parameters.
    """

    ratio: float | None = 0.25
    pooling: str = "attention"
    fusion: tuple[str, ...] = ("add",)
    axes: str = "spacetime"
    norm: NormFn | None = LayerNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps ``[B, *S, C]`` to the same shape; ``train`` only matters to an injected norm.

        ``mask``, ``[B, *S]``, is False where x is padding, which is no part of the context.

        Raises:
          InputError: a shape or an attribute does not fit.
        """
        check_feature_map(x, self.axes, mask)
        if self.pooling not in POOLINGS:
            raise InputError(f"pooling must be one of {POOLINGS}; got {self.pooling!r}")
        if not self.fusion or set(self.fusion) - set(FUSIONS):
            raise InputError(f"fusion must name some of {FUSIONS}; got {self.fusion!r}")

        whole, mask = block_input(x, mask)
        z = positions = to_positions(whole, self.axes)
        score = None
        if self.pooling == "attention":
            conv = nn.Dense(
                1, dtype=self.dtype, kernel_init=initializers.kaiming_fan_in, name="conv_mask"
            )
            score = conv(positions)[..., 0]
        context = ops.context_pool(positions, score, mask=mask_positions(mask, self.axes))

        transform = functools.partial(
            _ChannelTransform, ratio=self.ratio, norm=self.norm, dtype=self.dtype
        )
        if "multiply" in self.fusion:
            z = z * jax.nn.sigmoid(transform(name="channel_mul_conv")(context, train=train))
        if "add" in self.fusion:
            z = z + transform(name="channel_add_conv")(context, train=train)
        z = from_positions(z.astype(x.dtype), x.shape[1:-1], self.axes)
        return split_like(z, x)
