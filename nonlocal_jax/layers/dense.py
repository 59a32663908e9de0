"""The dense layer of Flax, with explicit types of its product."""

import functools

import flax.linen as nn
import jax
from flax.linen import dtypes

from nonlocal_jax.ops._numerics import float32_or_more


def promote_dtype(*arrays: jax.Array | None, dtype: jax.typing.DTypeLike | None) -> list:
    """Flax's function of this name, which also supports ``jax_numpy_dtype_promotion="strict"``."""
    with jax.numpy_dtype_promotion("standard"):
        return dtypes.promote_dtype(*arrays, dtype=dtype)


def _promote_but_bias(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, dtype) -> tuple:
    x, kernel = promote_dtype(x, kernel, dtype=dtype)
    return x, kernel, bias if bias is None else bias.astype(float32_or_more(x))


def _accumulated(x: jax.Array, kernel: jax.Array, *args, **options) -> jax.Array:
    wide = float32_or_more(x)
    return jax.lax.dot_general(x, kernel, *args, preferred_element_type=wide, **options)


# ``nn.Dense``, which also works if ``jax_numpy_dtype_promotion`` is "strict".
Dense = functools.partial(nn.Dense, promote_dtype=promote_dtype)

# Takes operands of ``dtype``, and returns at least float32.
Float32Dense = functools.partial(
    nn.Dense, promote_dtype=_promote_but_bias, dot_general=_accumulated
)
