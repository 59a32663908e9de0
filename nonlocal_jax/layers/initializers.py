"""Initializers of the reference implementations, for channels-last kernels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.linen import initializers

# kaiming_normal_(mode="fan_out", nonlinearity="relu"), for every convolution before a norm.
kaiming_fan_out = initializers.variance_scaling(2.0, "fan_out", "normal")

# kaiming_normal_(mode="fan_in"), only for the attention mask of the global context block.
kaiming_fan_in = initializers.variance_scaling(2.0, "fan_in", "normal")


# The two defaults of the blocks are functions of this module, so that blocks can be pickled.


def small_normal(key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32):
    """The normal distribution with a standard deviation of 0.01."""
    return initializers.normal(0.01)(key, shape, dtype)


def torch_default(key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32):
    """PyTorch's default for weights, U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    return initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)


def torch_default_bias(fan_in: int) -> initializers.Initializer:
    """Returns PyTorch's default for biases, U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""

    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
