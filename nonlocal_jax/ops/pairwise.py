"""The pairwise operations of non-local networks, y_i = (1/C(x)) sum_j f(x_i, x_j) g(x_j).

Four functions f of the NL paper (arXiv:1711.07971, section 3.2), and the disentangled form of DNL
(arXiv:2006.06668). The "dense" form of each is written as its formula reads, with the N x M matrix
in memory: the definition that every other form is held to. The others are exact as well and never
hold the matrix. ``IMPLEMENTATIONS`` lists them; "auto" chooses by shape.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops.context import channel_whiten, context_pool
from nonlocal_jax.ops.numerics import at_least_float32, check_positions
from nonlocal_jax.ops.sorting import relu_sums

# Rows of the N x M matrix held at a time by the chunked form. More rows use the matrix units
# better, fewer keep less in memory; beyond 256 the CPU gains nothing.
_CHUNK = 256

# Entries of the matrix (per leading dimension) up to which the dense form is chosen: 16 MiB.
_DENSE_LIMIT = 2**22

# The same for the concatenation, whose sorted form is the faster one from about 512 positions on.
_SORT_LIMIT = 2**18


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


def _dense_softmax(theta: jax.Array, phi: jax.Array, g: jax.Array, scale: float) -> jax.Array:
    return jnp.einsum("...nm,...md->...nd", attention_weights(theta, phi, scale=scale), g)


def _chunked_softmax(theta: jax.Array, phi: jax.Array, g: jax.Array, scale: float) -> jax.Array:
    """The dense form over a few rows at a time, recomputed in the backward pass."""

    @jax.checkpoint
    def row(theta_i):
        return _dense_softmax(theta_i[..., None, :], phi, g, scale)[..., 0, :]

    rows = jnp.moveaxis(theta, -2, 0)
    return jnp.moveaxis(jax.lax.map(row, rows, batch_size=_CHUNK), 0, -2)


def _dense_dot_product(theta: jax.Array, phi: jax.Array, g: jax.Array) -> jax.Array:
    f = jnp.einsum("...nc,...mc->...nm", theta, phi)
    return jnp.einsum("...nm,...md->...nd", f, g)


def _reassociated_dot_product(theta: jax.Array, phi: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.einsum("...nc,...cd->...nd", theta, jnp.einsum("...mc,...md->...cd", phi, g))


def _dense_concatenation(a: jax.Array, b: jax.Array, g: jax.Array) -> jax.Array:
    f = jax.nn.relu(a[..., :, None] + b[..., None, :])
    return jnp.einsum("...nm,...md->...nd", f, g)


IMPLEMENTATIONS: dict[str, dict[str, Callable[..., jax.Array]]] = {
    "softmax_attention": {"dense": _dense_softmax, "chunked": _chunked_softmax},
    "dot_product": {"dense": _dense_dot_product, "reassociated": _reassociated_dot_product},
    "concatenation": {"dense": _dense_concatenation, "sorted": relu_sums},
}


def _form(operation: str, implementation: str, auto: str) -> Callable[..., jax.Array]:
    """A form of an operation by name; ``auto`` is the name that "auto" stands for."""
    forms = IMPLEMENTATIONS[operation]
    name = auto if implementation == "auto" else implementation
    if name not in forms:
        names = ", ".join(["auto", *forms])
        raise InputError(f"implementation of {operation} must be one of {names}; got {name!r}")
    return forms[name]


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
    small = theta.shape[-2] * phi.shape[-2] <= _DENSE_LIMIT
    form = _form("softmax_attention", implementation, "dense" if small else "chunked")
    return form(theta, phi, at_least_float32(g), scale).astype(g.dtype)


def dot_product(
    theta: jax.Array, phi: jax.Array, g: jax.Array, *, implementation: str = "auto"
) -> jax.Array:
    """y_i = (1/M) sum_j (theta_i . phi_j) g_j (NL paper eq. 4), M the number of keys.

    With sub-sampled keys M is the number that remains, as in mmcv and the authors' code.

    Args:
      theta: queries ``[..., N, C]``.
      phi: keys ``[..., M, C]``.
      g: values ``[..., M, D]``.
      implementation: "dense" multiplies (theta phi^T) g, in N M (C + D) operations.
        "reassociated" multiplies theta (phi^T g): (N + M) C D operations, no N x M matrix. "auto"
        takes the one with fewer.

    Returns:
      ``[..., N, D]`` in the type of ``g``, computed in at least float32.

    Raises:
      ValueError: the shapes do not fit, or the implementation is unknown.
    """
    check_positions(theta, phi, g)
    (n, c), (m, d) = theta.shape[-2:], g.shape[-2:]
    dense_is_cheaper = n * m * (c + d) <= (n + m) * c * d
    form = _form("dot_product", implementation, "dense" if dense_is_cheaper else "reassociated")
    y = form(*map(at_least_float32, (theta, phi, g))) / m
    return y.astype(g.dtype)


def concatenation(
    theta_score: jax.Array, phi_score: jax.Array, g: jax.Array, *, implementation: str = "auto"
) -> jax.Array:
    """y_i = (1/M) sum_j ReLU(w_theta . theta_i + w_phi . phi_j) g_j (NL paper eq. 5).

    The projection of the concatenated pair splits into one score a query and one a key,
    w . [theta_i, phi_j] = a_i + b_j, so that is what this function takes.

    Args:
      theta_score: a, ``[..., N]``.
      phi_score: b, ``[..., M]``.
      g: values ``[..., M, D]``.
      implementation: "dense" holds the N x M matrix. "sorted" sorts the scores and takes prefix
        sums, see ``ops.sorting``: O((N + M)(log M + D)) operations, O((N + M) D) memory. "auto"
        takes the dense form up to 2**18 entries and the sorted form beyond.

    Returns:
      ``[..., N, D]`` in the type of ``g``, computed in at least float32.

    Raises:
      ValueError: the shapes do not fit, or the implementation is unknown.
    """
    check_positions(theta_score[..., None], phi_score[..., None], g)
    n, m = theta_score.shape[-1], phi_score.shape[-1]
    form = _form("concatenation", implementation, "dense" if n * m <= _SORT_LIMIT else "sorted")
    y = form(*map(at_least_float32, (theta_score, phi_score, g))) / m
    return y.astype(g.dtype)


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
