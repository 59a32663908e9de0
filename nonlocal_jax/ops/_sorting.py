"""The "sorted" implementation of the concatenation operation, in O((N + M)(log M + D)).

ReLU(a_i + b_j) is a_i + b_j for the active keys, those with a_i + b_j > 0, and zero for the others.
With the keys sorted by decreasing b, the active keys of query i are the first k_i. So every sum
over the active keys is a prefix sum, read at k_i.
"""

import functools

import jax
import jax.numpy as jnp

# Number of rows that one matrix product sums.
_BLOCK = 32


def _prefix_sums(x: jax.Array) -> jax.Array:
    """``[M, D]`` to ``[M + 1, D]``: row k is the sum of the first k rows.

    Multiplies blocks of rows with a triangular matrix of ones, then adds the sums of the blocks
    before. As accurate as ``jnp.cumsum`` and four times as fast on a CPU.
    """
    m, d = x.shape
    n = -(-m // _BLOCK)
    blocks = jnp.pad(x, ((0, n * _BLOCK - m), (0, 0))).reshape(n, _BLOCK, d)
    triangle = jnp.tril(jnp.ones((_BLOCK, _BLOCK), x.dtype))
    inside = jnp.einsum("kj,njd->nkd", triangle, blocks, precision=jax.lax.Precision.HIGHEST)
    before = jnp.pad(jnp.cumsum(inside[:, -1], axis=0)[:-1], ((1, 0), (0, 0)))
    sums = (inside + before[:, None]).reshape(n * _BLOCK, d)
    return jnp.pad(sums[:m], ((1, 0), (0, 0)))


@functools.partial(jnp.vectorize, signature="(n),(m),(m,d)->(n,d),(n,d)")
def _active_sums(a: jax.Array, b: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sum_j [a_i + b_j > 0] v_j and sum_j ReLU(a_i + b_j) v_j, for each i."""
    b = jnp.maximum(b, -jnp.max(a))  # keys that are never active must not shift the mean
    # a + b = (a + c) + (b - c), with c the mean of b: large scores of opposite sign cancel here
    # instead of in the sums.
    c = jnp.mean(b)
    order = jnp.argsort(-b)
    b, v = b[order], v[order]
    active = jnp.searchsorted(-b, a)
    ones = _prefix_sums(v)[active]
    return ones, (a + c)[:, None] * ones + _prefix_sums((b - c)[:, None] * v)[active]


@jax.custom_vjp
def sorted_concatenation(a: jax.Array, b: jax.Array, g: jax.Array) -> jax.Array:
    """Computes sum_j ReLU(a_i + b_j) g_j for each i, without approximation.

    It takes O((N + M)(log M + D)) time and O((N + M) D) memory, forward and backward. The gradients
    of b and g are the same sums with queries and keys exchanged, so the backward pass keeps only
    the arguments. The derivative of ReLU at 0 is 0.

    Args:
      a: Scores of the queries, ``[..., N]``.
      b: Scores of the keys, ``[..., M]``.
      g: Values ``[..., M, D]``.

    Returns:
      ``[..., N, D]``.
    """
    return _active_sums(a, b, g)[1]


def _forward(a: jax.Array, b: jax.Array, g: jax.Array) -> tuple[jax.Array, tuple]:
    return sorted_concatenation(a, b, g), (a, b, g)


def _backward(arguments: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    a, b, g = arguments
    ones, _ = _active_sums(a, b, g)
    transposed_ones, dg = _active_sums(b, a, dy)
    da, db = jnp.sum(ones * dy, axis=-1), jnp.sum(transposed_ones * g, axis=-1)
    return da.astype(a.dtype), db.astype(b.dtype), dg.astype(g.dtype)


sorted_concatenation.defvjp(_forward, _backward)
