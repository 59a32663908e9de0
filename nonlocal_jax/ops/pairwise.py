"""The pairwise operations of non-local networks, y_i = (1/C(x)) sum_j f(x_i, x_j) g(x_j).

Four functions f of the NL paper (arXiv:1711.07971, section 3.2), and the disentangled form of DNL
(arXiv:2006.06668). Each is written as its formula reads, with the N x M matrix in memory: these
dense forms are the definition that every faster form is held to. ``softmax_attention`` has a
second form that never holds the matrix; faster forms are added to ``IMPLEMENTATIONS``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops.context import channel_whiten, context_pool
from nonlocal_jax.ops.numerics import at_least_float32, check_positions

# Rows of the N x M matrix held at a time by the chunked form. More rows use the matrix units
# better, fewer keep less in memory; beyond 256 the CPU gains nothing.
_CHUNK = 256

# Entries of the matrix (per leading dimension) up to which the dense form is chosen: 16 MiB.
_DENSE_LIMIT = 2**22


def attention_weights(theta: jax.Array, phi: jax.Array, *, scale: float = 1.0) -> jax.Array:
    """A_ij = softmax_j(scale * theta_i . phi_j), the softmax over the keys j.

    Give it a few rows of ``theta`` to see where chosen positions look, without the N x M matrix.

    Args:
      theta: queries ``[..., N, C]``.
      phi: keys ``[..., M, C]``.
      scale: factor on the logits, 1/sqrt(C) for scaled attention.

    Returns:
      ``[..., N, M]``, at least float32; every row sums to one.
    """
    theta, phi = at_least_float32(theta), at_least_float32(phi)
    return jax.nn.softmax(scale * jnp.einsum("...nc,...mc->...nm", theta, phi), axis=-1)


def _dense(theta: jax.Array, phi: jax.Array, g: jax.Array, scale: float) -> jax.Array:
    return jnp.einsum("...nm,...md->...nd", attention_weights(theta, phi, scale=scale), g)


def _chunked(theta: jax.Array, phi: jax.Array, g: jax.Array, scale: float) -> jax.Array:
    """The dense form over a few rows at a time, recomputed in the backward pass."""

    @jax.checkpoint
    def row(theta_i):
        return _dense(theta_i[..., None, :], phi, g, scale)[..., 0, :]

    rows = jnp.moveaxis(theta, -2, 0)
    return jnp.moveaxis(jax.lax.map(row, rows, batch_size=_CHUNK), 0, -2)


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {"dense": _dense, "chunked": _chunked}


def _choose(theta: jax.Array, phi: jax.Array) -> str:
    return "dense" if theta.shape[-2] * phi.shape[-2] <= _DENSE_LIMIT else "chunked"


def softmax_attention(
    theta: jax.Array,
    phi: jax.Array,
    g: jax.Array,
    *,
    scale: float = 1.0,
    implementation: str = "auto",
) -> jax.Array:
    """y_i = sum_j softmax_j(scale * theta_i . phi_j) g_j.

    The Gaussian (theta = phi = x, NL paper eq. 2) and embedded Gaussian (eq. 3) functions. The
    paper has no scale; the released code of its authors, and mmcv with ``use_scale=True``, use
    1/sqrt(C) with C the width of theta.

    Args:
      theta: queries ``[..., N, C]``.
      phi: keys ``[..., M, C]``.
      g: values ``[..., M, D]``.
      scale: factor on the logits.
      implementation: "dense" holds the N x M matrix: O(N M) memory. "chunked" holds 256 of its
        rows and computes them again in the backward pass: O(N + M) memory, exact. "auto" takes
        the dense form up to 2**22 entries and the chunked form beyond.

    Returns:
      ``[..., N, D]`` in the type of ``g``; logits and softmax are at least float32.

    Raises:
      ValueError: the shapes do not fit, or the implementation is unknown.
    """
    check_positions(theta, phi, g)
    if implementation == "auto":
        implementation = _choose(theta, phi)
    if implementation not in IMPLEMENTATIONS:
        names = ", ".join(["auto", *IMPLEMENTATIONS])
        raise InputError(f"implementation must be one of {names}; got {implementation!r}")
    y = IMPLEMENTATIONS[implementation](theta, phi, at_least_float32(g), scale)
    return y.astype(g.dtype)


def dot_product(theta: jax.Array, phi: jax.Array, g: jax.Array) -> jax.Array:
    """y_i = (1/M) sum_j (theta_i . phi_j) g_j (NL paper eq. 4), M the number of keys.

    With sub-sampled keys M is the number that remains, as in mmcv and the authors' code.

    Args:
      theta: queries ``[..., N, C]``.
      phi: keys ``[..., M, C]``.
      g: values ``[..., M, D]``.

    Returns:
      ``[..., N, D]`` in the type of ``g``, computed in at least float32.

    Raises:
      ValueError: the shapes do not fit.
    """
    check_positions(theta, phi, g)
    f = jnp.einsum("...nc,...mc->...nm", at_least_float32(theta), at_least_float32(phi))
    y = jnp.einsum("...nm,...md->...nd", f, at_least_float32(g)) / phi.shape[-2]
    return y.astype(g.dtype)


def concatenation(theta_score: jax.Array, phi_score: jax.Array, g: jax.Array) -> jax.Array:
    """y_i = (1/M) sum_j ReLU(w_theta . theta_i + w_phi . phi_j) g_j (NL paper eq. 5).

    The projection of the concatenated pair splits into one score a query and one a key,
    w . [theta_i, phi_j] = a_i + b_j, so that is what this function takes.

    Args:
      theta_score: a, ``[..., N]``.
      phi_score: b, ``[..., M]``.
      g: values ``[..., M, D]``.

    Returns:
      ``[..., N, D]`` in the type of ``g``, computed in at least float32.

    Raises:
      ValueError: the shapes do not fit.
    """
    check_positions(theta_score[..., None], phi_score[..., None], g)
    a, b = at_least_float32(theta_score), at_least_float32(phi_score)
    f = jax.nn.relu(a[..., :, None] + b[..., None, :])
    return (jnp.einsum("...nm,...md->...nd", f, at_least_float32(g)) / b.shape[-1]).astype(g.dtype)


def disentangled(
    theta: jax.Array,
    phi: jax.Array,
    g: jax.Array,
    unary: jax.Array,
    *,
    scale: float = 1.0,
    implementation: str = "auto",
) -> jax.Array:
    """DNL: whitened pairwise term plus unary term, sharing the values g.

      y_i = sum_j softmax_j(scale * (theta_i - mean theta) . (phi_j - mean phi)) g_j
          + sum_j softmax_j(unary_j) g_j

    DNL paper eq. 11, means per image and channel over the positions. The convention is that of
    mmsegmentation: the unary term is one vector per image, added before the output projection.
    Centring is done in at least float32: the small temperature multiplies what is left.

    Args:
      theta: queries ``[..., N, C]``.
      phi: keys ``[..., M, C]``.
      g: values ``[..., M, D]``.
      unary: scores ``[..., M]``.
      scale: factor on the pairwise logits, 1/(sqrt(C) * temperature).
      implementation: as in ``softmax_attention``.

    Returns:
      ``[..., N, D]`` in the type of ``g``.

    Raises:
      ValueError: the shapes do not fit, or the implementation is unknown.
    """
    check_positions(theta, phi, g)
    theta, phi = channel_whiten(theta), channel_whiten(phi)
    pairwise = softmax_attention(theta, phi, g, scale=scale, implementation=implementation)
    return pairwise + context_pool(g, unary)
