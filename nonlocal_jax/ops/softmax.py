"""Implementations of softmax attention in plain JAX: "dense", "chunked" and "ring".

Each takes queries theta ``[..., N, C]``, keys phi ``[..., M, C]``, values g ``[..., M, D]``, a mask
``[..., M]`` or None, a scale, and the precision of products other than the logits. The mask is
False where a key is padding, and phi and g are zero there. Each returns ``[..., N, D]``, at least
float32. "dense" defines the result. The others compute the same function without approximation, but
do not materialize the N x M attention matrix.
"""

import functools

import jax
import jax.numpy as jnp

from nonlocal_jax.ops._numerics import (
    check_mask,
    check_positions,
    float32_or_more,
    promoted_dtype,
    with_sizes_known,
)

# The number of rows of the N x M matrix in memory at a time. More rows use the matrix units better,
# fewer rows take less memory. More than 256 rows are not faster on a CPU. On a ring of TPUs, 128
# rows fit into vector memory.
_ROWS = 256
_RING_ROWS = 128


def _logits(theta: jax.Array, phi: jax.Array, mask: jax.Array | None, scale: float) -> jax.Array:
    """scale * theta_i . phi_j, or the lowest number if key j is padding; at least float32.

    The product has at least float32 precision too. The default precision of accelerators rounds
    float32 operands to bfloat16 (TPU) or TF32 (NVIDIA). ``Precision.HIGH`` is TF32 on NVIDIA, and
    three bfloat16 passes on TPU, whose error is up to 5e-5 of the logits' standard deviation.
    """
    # Products of half precision are exact in float32, so a cast before would only cost time.
    wide, dtype = float32_or_more(theta, phi), promoted_dtype(theta, phi)
    logits = scale * jnp.einsum(
        "...nc,...mc->...nm",
        theta.astype(dtype),
        phi.astype(dtype),
        precision=None if dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST,
        preferred_element_type=wide,
    )
    if mask is None:
        return logits
    return jnp.where(mask[..., None, :], logits, jnp.finfo(wide).min)


def attention_weights(
    theta: jax.Array, phi: jax.Array, *, scale: float = 1.0, mask: jax.Array | None = None
) -> jax.Array:
    """The attention matrix A.

    ::

        A_ij = softmax over j of scale * theta_i . phi_j

    theta_i and phi_j are the rows of the arguments, and "." is the dot product. To compute only
    some rows of A, without materializing the full matrix, pass only these rows of ``theta``.

    Args:
      theta: Queries ``[..., N, C]``.
      phi: Keys ``[..., M, C]``.
      scale: Factor on the logits, 1/sqrt(C) for scaled attention.
      mask: Mask ``[..., M]``, False where a key is padding. Padding has weight zero. If all keys
        are padding, all weights are 1/M.

    Returns:
      ``[..., N, M]``, at least float32. Each row sums to one.

    Raises:
      InputError: A type is not floating, the shapes do not match, or the mask does not have one
        entry per key.
    """
    check_positions(theta, phi, phi)
    check_mask(mask, phi.shape[:-1])
    return jax.nn.softmax(_logits(theta, phi, mask, scale), axis=-1)


def dense(theta, phi, g, mask, scale, precision):
    """Materializes the attention matrix, up to its denominators.

    Dividing y by the denominators, instead of the matrix, makes the gradient up to twice as fast on
    a CPU. So does removing batch axes of size one for small matrices.
    """
    ones = tuple(range(theta.ndim - 2))
    if ones and all(theta.shape[i] == 1 for i in ones):
        single = (None if x is None else jnp.squeeze(x, ones) for x in (theta, phi, g, mask))
        return jnp.expand_dims(dense(*single, scale, precision), ones)
    logits = _logits(theta, phi, mask, scale)
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    dtype = float32_or_more(weights, g)
    weights, g = weights.astype(dtype), g.astype(dtype)
    y = jnp.einsum("...nm,...md->...nd", weights, g, precision=precision)
    return y / jnp.sum(weights, axis=-1, keepdims=True)


def _split_rows(x: jax.Array, axis: int, most: int) -> jax.Array:
    """Pads queries with zeros and splits them into equal chunks on a new first axis.

    A chunk has at most ``most`` rows, and exactly as many if the number of queries is symbolic.
    """
    n = x.shape[axis]
    chunks = -(-n // most)
    rows = -(-n // chunks) if with_sizes_known(x) else most
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, chunks * rows - n)
    shape = (*x.shape[:axis], chunks, rows, *x.shape[axis + 1 :])
    return jnp.moveaxis(jnp.pad(x, pad).reshape(shape), axis, 0)


def _join_rows(x: jax.Array, axis: int, n: int) -> jax.Array:
    """The inverse of ``_split_rows``."""
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, n, axis=axis)


def _attend(theta, phi, g, mask, scale, precision, most):
    """Returns y ``[..., N, D]``, and for each query the largest logit and the sum of exponentials.

    The latter two are ``[..., N]``. Together they are the denominator of the softmax,
    exp(largest) * sum_j exp(logit_j - largest). Its logarithm in one number would lose digits if
    logits are large.
    """

    dtype = float32_or_more(theta, phi, g)
    wide = g.astype(dtype)

    def rows(theta):
        logits = _logits(theta, phi, mask, scale)
        largest = jnp.max(logits, axis=-1)
        weights = jnp.exp(logits - largest[..., None])
        total = jnp.sum(weights, axis=-1)
        y = jnp.einsum("...nm,...md->...nd", weights.astype(dtype), wide, precision=precision)
        return y / total[..., None].astype(dtype), largest, total

    axis, n = theta.ndim - 2, theta.shape[-2]
    parts = jax.lax.map(rows, _split_rows(theta, axis, most))
    return tuple(_join_rows(x, axis, n) for x in parts)


def _attend_backward(queries, phi, g, mask, scale, precision, most):
    """The part of the gradients (dtheta, dphi, dg) that is due to these queries and these keys.

    ::

        dg_j     = sum_i p_ij dy_i
        ds_ij    = scale p_ij (dy_i . g_j - D_i)
        dtheta_i = sum_j ds_ij phi_j
        dphi_j   = sum_i ds_ij theta_i

    Here p is the softmax over the keys of all devices, and D_i = dy_i . y_i. ``queries`` are theta,
    the largest logits, the reciprocals of the sums, dy and D.
    """
    dtype = float32_or_more(queries[0], phi, g)
    phi_wide, g = phi.astype(dtype), g.astype(dtype)
    product = functools.partial(jnp.einsum, precision=precision)

    def rows(sums, chunk):
        theta, largest, share, dy, delta = chunk
        p = jnp.exp(_logits(theta, phi, mask, scale) - largest[..., None]) * share[..., None]
        p = p.astype(dtype)
        dp = product("...nd,...md->...nm", dy, g)
        ds = scale * p * (dp - delta[..., None])
        dphi = product("...nm,...nc->...mc", ds, theta.astype(dtype))
        dg = product("...nm,...nd->...md", p, dy)
        sums = jax.tree.map(jnp.add, sums, (dphi, dg))
        return sums, product("...nm,...mc->...nc", ds, phi_wide)

    axis, n = queries[0].ndim - 2, queries[0].shape[-2]
    chunks = tuple(_split_rows(x, axis, most) for x in queries)
    # Zeros computed from the arguments vary over the same axes of a shard_map as the sums do.
    start = (0 * phi_wide, 0 * g)
    (dphi, dg), dtheta = jax.lax.scan(rows, start, chunks)
    return _join_rows(dtheta, axis, n), dphi, dg


def _pass_on(keys, axis_name: str):
    """Sends keys to the next device of the ring; returns those of the previous device."""
    size = jax.lax.axis_size(axis_name)
    ring = [(i, (i + 1) % size) for i in range(size)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axis_name, ring), keys)


def _attend_all(theta, phi, g, mask, scale, precision, axis_name):
    """``_attend`` to the keys of all devices."""
    if axis_name is None:
        return _attend(theta, phi, g, mask, scale, precision, _ROWS)

    def hop(_, carry):
        keys, y, largest, total = carry
        keys = _pass_on(keys, axis_name)
        y_here, largest_here, total_here = _attend(theta, *keys, scale, precision, _RING_ROWS)
        new = jnp.maximum(largest, largest_here)
        total *= jnp.exp(largest - new)
        total_here *= jnp.exp(largest_here - new)
        weighted = total[..., None] * y + total_here[..., None] * y_here
        total += total_here
        return keys, weighted / total[..., None], new, total

    hops = jax.lax.axis_size(axis_name) - 1
    start = (phi, g, mask), *_attend(theta, phi, g, mask, scale, precision, _RING_ROWS)
    return jax.lax.fori_loop(0, hops, hop, start)[1:]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend_in_chunks(theta, phi, g, mask, scale, precision, axis_name):
    return _attend_all(theta, phi, g, mask, scale, precision, axis_name)[0]


def _forward(theta, phi, g, mask, scale, precision, axis_name):
    y, largest, total = _attend_all(theta, phi, g, mask, scale, precision, axis_name)
    return y, (theta, phi, g, mask, y, largest, total)


def _backward(scale, precision, axis_name, residuals, dy):
    theta, phi, g, mask, y, largest, total = residuals
    # The padding of the last chunk makes this reciprocal zero, and with it the weights.
    queries = theta, largest, 1 / total, dy, jnp.sum(dy * y, axis=-1)
    rows = _ROWS if axis_name is None else _RING_ROWS
    dtheta, dphi, dg = _attend_backward(queries, phi, g, mask, scale, precision, rows)

    def hop(_, carry):
        keys, sums, dtheta = carry
        keys, sums = _pass_on((keys, sums), axis_name)
        dtheta_here, *sums_here = _attend_backward(queries, *keys, scale, precision, rows)
        return keys, jax.tree.map(jnp.add, sums, tuple(sums_here)), dtheta + dtheta_here

    if axis_name is not None:
        hops = jax.lax.axis_size(axis_name) - 1
        carry = (phi, g, mask), (dphi, dg), dtheta
        _, sums, dtheta = jax.lax.fori_loop(0, hops, hop, carry)
        dphi, dg = _pass_on(sums, axis_name)  # back to the device that owns these keys
    return dtheta.astype(theta.dtype), dphi.astype(phi.dtype), dg.astype(g.dtype), None


_attend_in_chunks.defvjp(_forward, _backward)


def chunked(theta, phi, g, mask, scale, precision):
    """Computes a chunk of rows of the attention matrix at a time, and again in the backward pass.

    Only the arguments, y and two numbers per query are kept for the backward pass.
    """
    return _attend_in_chunks(theta, phi, g, mask, scale, precision, None)


def ring(theta, phi, g, mask, scale, precision, axis_name=None):
    """Like ``chunked``, with positions split over the devices of ``axis_name`` (arXiv:2310.01889).

    Each device keeps its queries. The keys are passed around a ring of devices. Partial softmaxes
    are combined by their denominators. In the backward pass, the gradients of the keys are passed
    with the keys. Without ``axis_name``, there is one device.
    """
    return _attend_in_chunks(theta, phi, g, mask, scale, precision, axis_name)
