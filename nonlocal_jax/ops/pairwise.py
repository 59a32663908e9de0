"""The pairwise operations of non-local networks.

::

    y_i = (1 / Z_i) sum_j f(theta_i, phi_j) g_j

theta_i is the query of position i. phi_j and g_j are the key and the value of position j. y_i is
the output. There are N queries and M keys. f is a pairwise function of the NL paper
(arXiv:1711.07971, section 3.2). Z_i is its normalizer: sum_j f(theta_i, phi_j) for softmax
attention, M for the dot product and the concatenation.

Each operation has several implementations, listed in ``IMPLEMENTATIONS``. "dense" follows the
formula and materializes the N x M matrix of f. It defines the result, and tests compare the others
with it. The others compute the same function without approximation, but do not materialize the
matrix. "auto" chooses by platform and shape.

All operations take a ``mask`` of the keys, so that feature maps of different sizes can share a
batch. They also take an ``axis_name``, the axis of a ``jax.shard_map`` that the positions of
queries and keys are split over.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops import _attention, softmax
from nonlocal_jax.ops._numerics import (
    at_least_float32,
    check_floating,
    check_mask,
    check_positions,
    check_scalar,
    count_positions,
    float32_or_more,
    over_devices,
    vary_alike,
    with_sizes_known,
    zero_padding,
)
from nonlocal_jax.ops._sorting import sorted_concatenation

# The limit of "dense" for the concatenation. "sorted" is faster from about 300 positions on.
_SORT_LIMIT = 2**16

# "auto" gathers keys and values on each device if they have up to this many entries, over all batch
# items of the device. Else it uses "ring". In float32, this many entries take 128 MiB.
_GATHER_LIMIT = 2**25


def _dense_dot_product(theta, phi, g, precision, axis_name):
    phi, g = _gather((phi, g), axis_name, axis=-2)
    f = jnp.einsum("...nc,...mc->...nm", theta, phi, precision=precision)
    return jnp.einsum("...nm,...md->...nd", f, g, precision=precision)


def _reassociated_dot_product(theta, phi, g, precision, axis_name):
    products = jnp.einsum("...mc,...md->...cd", phi, g, precision=precision)
    products = over_devices(products, axis_name)
    return jnp.einsum("...nc,...cd->...nd", theta, products, precision=precision)


def _dense_concatenation(a, b, g, precision):
    f = jax.nn.relu(a[..., :, None] + b[..., None, :])
    return jnp.einsum("...nm,...md->...nd", f, g, precision=precision)


def _sorted_concatenation(a, b, g, precision):
    del precision  # always float32
    return sorted_concatenation(a, b, g)


IMPLEMENTATIONS: dict[str, dict[str, Callable[..., jax.Array]]] = {
    "softmax_attention": _attention.IMPLEMENTATIONS,
    "dot_product": {"dense": _dense_dot_product, "reassociated": _reassociated_dot_product},
    "concatenation": {"dense": _dense_concatenation, "sorted": _sorted_concatenation},
}


def _gather(arrays, axis_name: str | None, axis: int):
    """All-gathers arrays that are split over devices along ``axis``; None stays None."""
    if axis_name is None:
        return arrays

    def gather(x):
        return jax.lax.all_gather(x, axis_name, axis=x.ndim + axis, tiled=True)

    return jax.tree.map(gather, arrays)


def _implementation(operation: str, name: str) -> Callable[..., jax.Array]:
    known = IMPLEMENTATIONS[operation]
    if name not in known:
        names = ", ".join(["auto", *known])
        raise InputError(f"implementation of {operation} is {name!r}; use one of {names}")
    return known[name]


def softmax_attention(
    theta: jax.Array,
    phi: jax.Array,
    g: jax.Array,
    *,
    scale: float | jax.Array = 1.0,
    mask: jax.Array | None = None,
    axis_name: str | None = None,
    precision: jax.lax.PrecisionLike = None,
    implementation: str = "auto",
) -> jax.Array:
    """Softmax attention.

    ::

        y_i  = sum_j A_ij g_j
        A_ij = softmax over j of scale * theta_i . phi_j

    theta_i, phi_j and g_j are the rows of the arguments, and "." is the dot product. With
    theta = phi = x, this is the Gaussian function of the NL paper (eq. 2). With projections of x,
    it is the embedded Gaussian function (eq. 3). The paper has no scale. The authors' code, and
    mmcv with ``use_scale=True``, use 1/sqrt(C). The cost is O(N M (C + D)) operations.

    Args:
      theta: Queries ``[..., N, C]``.
      phi: Keys ``[..., M, C]``.
      g: Values ``[..., M, D]``.
      scale: Factor on the logits, a number or a scalar array.
      mask: Mask ``[..., M]``, False where a key is padding. Padding is ignored. If all keys are
        padding, y is zero.
      axis_name: Axis of a ``jax.shard_map`` that the positions of queries and keys are split over.
      precision: Precision of all products except the logits, as in ``jax.numpy.einsum``. The
        kernels "flash" and "cudnn" ignore it.
      implementation: One of the following.

        - "dense" materializes the N x M attention matrix.
        - "chunked" computes up to 256 rows of the matrix at a time, and recomputes them in the
          backward pass. It uses O(N + M) memory.
        - "flash" is JAX's Pallas kernel for TPU. A program with it can only be compiled for TPUs.
        - "cudnn" is cuDNN's kernel for NVIDIA GPUs, in bfloat16. A program with it can only be
          compiled for NVIDIA GPUs.
        - "ring" is "chunked" for positions that are split over devices. Keys and values are passed
          from device to device, so the memory depends only on the positions of one device. The
          other implementations gather keys and values on each device.
        - "auto" chooses by platform and shape (see ``best_attention``). With ``axis_name``, it
          chooses "ring" if keys and values would have more than 2**25 entries on each device after
          gathering.

        Only "dense" supports forward-mode first derivatives. All others support reverse mode.
        Second derivatives of "flash" and "cudnn" are computed by "chunked", in reverse mode.

    Returns:
      ``[..., N, D]`` in the type of ``g``. Logits and softmax are computed in at least float32. On
      every platform, the product theta . phi has at least float32 precision, or is exact up to its
      float32 accumulation if theta and phi are bfloat16.

    Raises:
      InputError: A type is not floating, the shapes do not match, the implementation is unknown or
        does not support the arguments, or the program is compiled for another platform than that of
        the kernel.
    """
    check_positions(theta, phi, g)
    check_mask(mask, phi.shape[:-1])
    check_scalar(scale=scale)
    if implementation != "auto":
        _implementation("softmax_attention", implementation)
    if isinstance(scale, jax.Array):  # a learned scale; the implementations take a number
        scaled = at_least_float32(theta)
        theta, scale = (scaled * scale.astype(scaled.dtype)).astype(theta.dtype), 1.0
    return _softmax_attention(
        *(theta, phi, g, mask),
        scale=float(scale),
        axis_name=axis_name,
        precision=precision,
        implementation=implementation,
    )


# Without jit, the loops of the implementations would be compiled at each call.
@functools.partial(jax.jit, static_argnames=("scale", "axis_name", "precision", "implementation"))
def _softmax_attention(theta, phi, g, mask, *, scale, axis_name, precision, implementation):
    theta, phi, g, mask = vary_alike(theta, phi, g, mask)
    phi, g = zero_padding(mask, phi), zero_padding(mask, g)
    if axis_name is not None and implementation == "auto" and with_sizes_known(phi, g):
        numbers = (phi.size + g.size) * jax.lax.axis_size(axis_name)
        implementation = "ring" if numbers > _GATHER_LIMIT else "auto"
    if implementation == "ring":
        return softmax.ring(theta, phi, g, mask, scale, precision, axis_name).astype(g.dtype)
    phi, g = _gather((phi, g), axis_name, axis=-2)
    mask = _gather(mask, axis_name, axis=-1)
    y = _attention.attend(theta, phi, g, mask, scale, precision, implementation)
    return y.astype(g.dtype)


def dot_product(
    theta: jax.Array,
    phi: jax.Array,
    g: jax.Array,
    *,
    mask: jax.Array | None = None,
    axis_name: str | None = None,
    precision: jax.lax.PrecisionLike = None,
    implementation: str = "auto",
) -> jax.Array:
    """Dot-product attention (NL paper eq. 4).

    ::

        y_i = (1 / M) sum_j (theta_i . phi_j) g_j

    theta_i, phi_j and g_j are the rows of the arguments, and "." is the dot product. M is the
    number of keys. If the keys are sub-sampled, it is the number after sub-sampling, as in mmcv and
    the authors' code. With ``mask``, the number of keys that are not padding replaces M in 1 / M.

    Args:
      theta: Queries ``[..., N, C]``.
      phi: Keys ``[..., M, C]``.
      g: Values ``[..., M, D]``.
      mask: Mask ``[..., M]``, False where a key is padding. Padding is ignored.
      axis_name: Axis of a ``jax.shard_map`` that the positions of queries and keys are split over.
      precision: Precision of the products, as in ``jax.numpy.einsum``.
      implementation: One of the following.

        - "dense" computes (theta phi^T) g, in N M (C + D) operations.
        - "reassociated" computes theta (phi^T g), in (N + M) C D operations and without the N x M
          matrix. With ``axis_name``, it sums C D numbers per batch item over the devices.
        - "auto" chooses the one with fewer operations. With ``axis_name``, it chooses
          "reassociated", and also if a size is symbolic (``jax.export``).

    Returns:
      ``[..., N, D]`` in the type of ``g``, computed in at least float32.

    Raises:
      InputError: A type is not floating, the shapes do not match, or the implementation is unknown.
    """
    check_positions(theta, phi, g)
    check_mask(mask, phi.shape[:-1])
    phi, g = zero_padding(mask, phi), zero_padding(mask, g)
    (n, c), (m, d) = theta.shape[-2:], g.shape[-2:]
    if implementation == "auto":
        can_be_dense = axis_name is None and with_sizes_known(theta, g)
        is_cheaper = can_be_dense and n * m * (c + d) <= (n + m) * c * d
        implementation = "dense" if is_cheaper else "reassociated"
    compute = _implementation("dot_product", implementation)
    dtype = float32_or_more(theta, phi, g)
    y = compute(*(x.astype(dtype) for x in (theta, phi, g)), precision, axis_name)
    return (y / count_positions(phi, mask, axis_name)).astype(g.dtype)


def concatenation(
    theta_score: jax.Array,
    phi_score: jax.Array,
    g: jax.Array,
    *,
    mask: jax.Array | None = None,
    axis_name: str | None = None,
    precision: jax.lax.PrecisionLike = None,
    implementation: str = "auto",
) -> jax.Array:
    """Attention by concatenation (NL paper eq. 5).

    ::

        y_i = (1 / M) sum_j ReLU(w . [theta_i, phi_j]) g_j
            = (1 / M) sum_j ReLU(a_i + b_j) g_j

    [theta_i, phi_j] is the concatenation of query and key, "." is the dot product, and
    w = [w_theta, w_phi] is a learned vector. The product is the sum of a score of the query,
    a_i = w_theta . theta_i, and a score of the key, b_j = w_phi . phi_j. This function takes the
    scores. M is the number of keys. With ``mask``, the number of keys that are not padding replaces
    M in 1 / M.

    Args:
      theta_score: Scores a of the queries, ``[..., N]``.
      phi_score: Scores b of the keys, ``[..., M]``.
      g: Values ``[..., M, D]``.
      mask: Mask ``[..., M]``, False where a key is padding. Padding is ignored.
      axis_name: Axis of a ``jax.shard_map`` that the positions of queries and keys are split over.
        Each device gathers b and g.
      precision: Precision of the product of "dense", as in ``jax.numpy.einsum``. "sorted" has no
        such product and always computes in at least float32 precision.
      implementation: One of the following.

        - "dense" materializes the N x M matrix.
        - "sorted" sorts the scores and computes prefix sums, in O((N + M)(log M + D)) operations
          and O((N + M) D) memory. First derivatives must be in reverse mode.
        - "auto" chooses "dense" for matrices of up to 2**16 entries per batch item, else "sorted".
          It also chooses "sorted" if a size is symbolic (``jax.export``).

    Returns:
      ``[..., N, D]`` in the type of ``g``, computed in at least float32.

    Raises:
      InputError: A type is not floating, the shapes do not match, or the implementation is unknown.
    """
    check_floating(theta_score=theta_score, phi_score=phi_score, g=g)
    leading, n, m = g.shape[:-2], theta_score.shape[-1:], g.shape[-2:-1]
    fits = theta_score.shape == leading + n and phi_score.shape == leading + m
    if not (fits and n and m and all(n + m)):
        raise InputError(
            f"theta_score has shape {theta_score.shape}, phi_score {phi_score.shape}, g {g.shape}; "
            "use theta_score [..., N], phi_score [..., M], g [..., M, D] with at least one query "
            "and one key"
        )
    check_mask(mask, phi_score.shape)
    theta_score, phi_score = theta_score[..., None], phi_score[..., None]
    theta_score, phi_score, g, mask = vary_alike(theta_score, phi_score, g, mask)
    phi_score, g = zero_padding(mask, phi_score), zero_padding(mask, g)
    number = count_positions(g, mask, axis_name)
    dtype = g.dtype
    phi_score, g = _gather((phi_score, g), axis_name, axis=-2)
    if implementation == "auto":
        known = with_sizes_known(theta_score, phi_score)
        is_small = known and theta_score.shape[-2] * phi_score.shape[-2] <= _SORT_LIMIT
        implementation = "dense" if is_small else "sorted"
    compute = _implementation("concatenation", implementation)
    scores = theta_score[..., 0], phi_score[..., 0]
    wide = float32_or_more(*scores, g)
    y = compute(*(x.astype(wide) for x in (*scores, g)), precision)
    return (y / number).astype(dtype)
