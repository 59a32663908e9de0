"""The "sorted" implementation of the concatenation operation, in O((N + M)(log M + D)).

With the keys sorted by decreasing b, the active keys of query i, those with a_i + b_j > 0, are the
first k keys, and k depends on i. So every sum over the active keys is a prefix sum, read at k. With
G_j the sum of the first j values, summation by parts gives::

    sum_j ReLU(a_i + b_j) g_j = (a_i + b_k) G_k + sum_{j < k} (b_j - b_{j+1}) G_j

All factors of G are positive or zero, and their sum is the largest ReLU(a_i + b_j). So scores that
are large, or far from all others, cost no accuracy.
"""

import functools

import jax
import jax.numpy as jnp

# Number of rows that one matrix product sums.
_BLOCK = 32


def _prefix_sums(x: jax.Array) -> jax.Array:
    """Row k of the result is the sum of the rows 0 to k of ``[M, D]``.

    Multiplies blocks of rows with a triangular matrix of ones, then adds the sums of the blocks
    before. As accurate as ``jnp.cumsum`` and four times as fast on a CPU. If a row has a NaN or an
    infinity, the sums that contain it are NaN, and no others.
    """
    m, d = x.shape
    n = (m + _BLOCK - 1) // _BLOCK
    finite = jnp.isfinite(x)
    # The product of a NaN with a zero of the matrix is NaN.
    blocks = jnp.pad(jnp.where(finite, x, 0), ((0, n * _BLOCK - m), (0, 0)))
    blocks = blocks.reshape(n, _BLOCK, d)
    triangle = jnp.tril(jnp.ones((_BLOCK, _BLOCK), x.dtype))
    inside = jnp.einsum("kj,njd->nkd", triangle, blocks, precision=jax.lax.Precision.HIGHEST)
    before = jnp.pad(jnp.cumsum(inside[:, -1], axis=0)[:-1], ((1, 0), (0, 0)))
    sums = (inside + before[:, None]).reshape(n * _BLOCK, d)[:m]
    row = jax.lax.broadcasted_iota(jnp.int32, (m, d), 0)
    first = jnp.min(jnp.where(finite, m, row), axis=0, keepdims=True)
    return jnp.where(row < first, sums, jnp.nan)


def _count_active(a: jax.Array, b: jax.Array) -> jax.Array:
    """The number of active keys of each query, by bisection of the sorted keys b[1], b[2], ...

    ``jnp.searchsorted`` does not work on a mesh with explicit axes in all supported versions of
    JAX.
    """
    m = b.shape[0] - 1
    bits = m.bit_length() if isinstance(m, int) else 31  # m may be symbolic (jax.export)
    count = jnp.zeros(a.shape, jnp.int32)
    for bit in reversed(range(bits)):
        larger = count + 2**bit
        active = a + b[jnp.minimum(larger, m)] > 0
        count = jnp.where(active & (larger <= m), larger, count)
    return count


@functools.partial(jnp.vectorize, signature="(n),(m),(m,d)->(n),(n,d),(n,d)")
def _active_sums(
    a: jax.Array, b: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """any_j [a_i + b_j > 0], sum_j [a_i + b_j > 0] v_j and sum_j ReLU(a_i + b_j) v_j for each i."""
    # A NaN in b is last and not active, but makes all sums NaN.
    nan = jnp.where(jnp.any(jnp.isnan(b)), jnp.nan, 0)
    # Before the first key there are zeros, which are read where no key is active.
    order = jnp.pad(jnp.argsort(-b) + 1, (1, 0))
    b, v = jnp.pad(b, (1, 0))[order], jnp.pad(v, ((1, 0), (0, 0)))[order]
    k = _count_active(a, b)
    sums = _prefix_sums(v)
    before = jnp.pad(sums[:-1], ((1, 0), (0, 0)))
    steps = _prefix_sums(-jnp.diff(b, prepend=b[:1])[:, None] * before)
    ones = sums[k]
    return k > 0, ones, (jax.nn.relu(a + b[k]) + nan)[:, None] * ones + steps[k]


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
    return _active_sums(a, b, g)[2]


def _forward(a: jax.Array, b: jax.Array, g: jax.Array) -> tuple[jax.Array, tuple]:
    # Not sorted_concatenation, which has no forward-mode derivative: jvp of a gradient needs one.
    return _active_sums(a, b, g)[2], (a, b, g)


def _score_gradient(active: jax.Array, ones: jax.Array, values: jax.Array) -> jax.Array:
    """The sum over D, and zero for scores that are never active, whatever their values are."""
    return jnp.sum(ones * values, axis=-1, where=active[..., None])


def _backward(arguments: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    a, b, g = arguments
    active, ones, _ = _active_sums(a, b, g)
    da = _score_gradient(active, ones, dy)
    active, ones, dg = _active_sums(b, a, dy)
    db = _score_gradient(active, ones, g)
    return da.astype(a.dtype), db.astype(b.dtype), dg.astype(g.dtype)


sorted_concatenation.defvjp(_forward, _backward)
