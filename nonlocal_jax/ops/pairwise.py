"""The pairwise operations of non-local networks, y_i = (1/C(x)) sum_j f(x_i, x_j) g(x_j).

Four functions f of the NL paper (arXiv:1711.07971, section 3.2), and the disentangled form of DNL
(arXiv:2006.06668). The "dense" form of each is written as its formula reads, with the N x M matrix
in memory: the definition that every other form is held to. The others are exact as well and never
hold the matrix. ``IMPLEMENTATIONS`` lists them; "auto" chooses by platform and shape.

All take a ``mask`` of the keys, so that maps of different size can share a batch, and the
``axis_name`` of a ``jax.shard_map`` whose devices share the positions, queries and keys alike.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops import _kernels as kernels
from nonlocal_jax.ops import softmax
from nonlocal_jax.ops._numerics import (
    at_least_float32,
    check_mask,
    check_positions,
    count_positions,
    over_devices,
    vary_alike,
    zero_padding,
)
from nonlocal_jax.ops._sorting import relu_sums
from nonlocal_jax.ops.context import channel_whiten, context_pool

# Entries of the matrix (per leading dimension) up to which softmax attention is dense: 16 MiB.
_DENSE_LIMIT = 2**22

# The same for the concatenation, whose sorted form is the faster one from about 512 positions on.
_SORT_LIMIT = 2**18

# Numbers in all keys and values up to which every device gathers them; beyond, they go around a
# ring. 128 MiB in float32.
_GATHER_LIMIT = 2**25


def _dense_dot_product(theta, phi, g, axis_name):
    phi, g = _gather((phi, g), axis_name, axis=-2)
    f = jnp.einsum("...nc,...mc->...nm", theta, phi)
    return jnp.einsum("...nm,...md->...nd", f, g)


def _reassociated_dot_product(theta, phi, g, axis_name):
    products = over_devices(jnp.einsum("...mc,...md->...cd", phi, g), axis_name)
    return jnp.einsum("...nc,...cd->...nd", theta, products)


def _dense_concatenation(a, b, g):
    f = jax.nn.relu(a[..., :, None] + b[..., None, :])
    return jnp.einsum("...nm,...md->...nd", f, g)


IMPLEMENTATIONS: dict[str, dict[str, Callable[..., jax.Array]]] = {
    "softmax_attention": {
        "dense": softmax.dense,
        "chunked": softmax.ring,  # of one device
        "ring": softmax.ring,
        "flash": kernels.flash,
        "cudnn": kernels.cudnn,
    },
    "dot_product": {"dense": _dense_dot_product, "reassociated": _reassociated_dot_product},
    "concatenation": {"dense": _dense_concatenation, "sorted": relu_sums},
}


def _gather(arrays, axis_name: str | None, axis: int):
    """The whole of arrays that the devices hold in parts; None stays None."""
    if axis_name is None:
        return arrays

    def gather(x):
        return jax.lax.all_gather(x, axis_name, axis=x.ndim + axis, tiled=True)

    return jax.tree.map(gather, arrays)


def _form(operation: str, name: str) -> Callable[..., jax.Array]:
    forms = IMPLEMENTATIONS[operation]
    if name not in forms:
        names = ", ".join(["auto", *forms])
        raise InputError(f"implementation of {operation} must be one of {names}; got {name!r}")
    return forms[name]


def best_attention(platform: str, theta: jax.Array, phi: jax.Array, g: jax.Array) -> str:
    """The form of softmax attention that "auto" stands for on "cpu", "tpu" or "cuda".

    ================================================================  =======
    the matrix has up to 2**22 entries                                dense
    TPU, bfloat16 or float32, widths up to 1024                       flash
    GPU with cuDNN, bfloat16, widths up to 256 (before Hopper: 128)   cudnn
    everything else                                                   chunked
    ================================================================  =======

    The disentangled operation makes its queries and keys float32, so on a GPU it is chunked.
    """
    if theta.shape[-2] * phi.shape[-2] <= _DENSE_LIMIT:
        return "dense"
    if platform == "tpu" and kernels.fits_flash(theta, phi, g):
        return "flash"
    in_bfloat16 = all(x.dtype == jnp.bfloat16 for x in (theta, phi, g))
    if platform == "cuda" and in_bfloat16 and kernels.fits_cudnn(theta.shape[-1], g.shape[-1]):
        return "cudnn"
    return "chunked"


def _attend(theta, phi, g, mask, scale, implementation):
    """Softmax attention on one device, by the form of this name or the best one for the target."""
    if implementation != "auto":
        return _form("softmax_attention", implementation)(theta, phi, g, mask, scale)
    names = {p: best_attention(p, theta, phi, g) for p in ("cpu", "tpu", "cuda")}
    forms = {
        platform: functools.partial(_form("softmax_attention", name), scale=scale)
        for platform, name in names.items()
    }
    default = forms.pop("cpu")
    if len(set(names.values())) == 1:
        return default(theta, phi, g, mask)
    # By the platform compiled for, which need not be the one that this runs on.
    return jax.lax.platform_dependent(theta, phi, g, mask, **forms, default=default)


def softmax_attention(
    theta: jax.Array,
    phi: jax.Array,
    g: jax.Array,
    *,
    scale: float = 1.0,
    mask: jax.Array | None = None,
    axis_name: str | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """y_i = sum_j softmax_j(scale * theta_i . phi_j) g_j.

    The Gaussian (theta = phi = x, NL paper eq. 2) and embedded Gaussian (eq. 3) functions. The
    paper has no scale; the released code of its authors, and mmcv with ``use_scale=True``, use
    1/sqrt(C) with C the width of theta. O(N M (C + D)) operations.

    Args:
      theta: queries ``[..., N, C]``.
      phi: keys ``[..., M, C]``.
      g: values ``[..., M, D]``.
      scale: factor on the logits, a number or a scalar array.
      mask: ``[..., M]``, False where a key is padding, whose content does not matter. A query
        without any key gets zeros.
      axis_name: axis of a ``jax.shard_map`` that the positions are split over, queries and keys.
      implementation: "dense" holds the N x M matrix. "chunked" holds 256 of its rows and computes
        them again in the backward pass, which is its own: O(N + M) memory. "flash" is JAX's Pallas
        kernel for TPU, "cudnn" cuDNN's for NVIDIA GPUs, in bfloat16. "auto" chooses by platform
        and shape, see ``best_attention``. Over several devices these gather the keys first; "ring"
        passes them on from device to device instead, in memory that depends on the positions of
        one device alone, and "auto" does so where keys and values are more than 2**25 numbers.
        All but "dense" differentiate in reverse mode only, "flash" and "cudnn" once.

    Returns:
      ``[..., N, D]`` in the type of ``g``; logits and softmax are at least float32.

    Raises:
      InputError: the shapes do not fit, or the implementation is unknown.
    """
    check_positions(theta, phi, g)
    check_mask(mask, phi.shape[:-1])
    if jnp.ndim(scale) > 0:
        raise InputError(f"scale must be one number; got an array of shape {jnp.shape(scale)}")
    if isinstance(scale, jax.Array):  # learned; the forms take a number
        theta, scale = at_least_float32(theta) * scale, 1.0
    theta, phi, g, mask = vary_alike(theta, phi, g, mask)
    phi, g = zero_padding(mask, phi), zero_padding(mask, g)
    if axis_name is not None and implementation == "auto":
        numbers = (phi.size + g.size) * jax.lax.axis_size(axis_name)
        implementation = "ring" if numbers > _GATHER_LIMIT else "auto"
    if implementation == "ring":
        return softmax.ring(theta, phi, g, mask, scale, axis_name).astype(g.dtype)
    phi, g = _gather((phi, g), axis_name, axis=-2)
    mask = _gather(mask, axis_name, axis=-1)
    return _attend(theta, phi, g, mask, scale, implementation).astype(g.dtype)


def dot_product(
    theta: jax.Array,
    phi: jax.Array,
    g: jax.Array,
    *,
    mask: jax.Array | None = None,
    axis_name: str | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """y_i = (1/M) sum_j (theta_i . phi_j) g_j (NL paper eq. 4), M the number of keys.

    With sub-sampled keys M is the number that remains, as in mmcv and the authors' code; with a
    mask, the number of keys that are not padding.

    Args:
      theta: queries ``[..., N, C]``.
      phi: keys ``[..., M, C]``.
      g: values ``[..., M, D]``.
      mask: ``[..., M]``, False where a key is padding, whose content does not matter.
      axis_name: axis of a ``jax.shard_map`` that the positions are split over, queries and keys.
      implementation: "dense" multiplies (theta phi^T) g, in N M (C + D) operations.
        "reassociated" multiplies theta (phi^T g): (N + M) C D operations, no N x M matrix, and C D
        numbers to add up over the devices. "auto" takes the one with fewer operations.

    Returns:
      ``[..., N, D]`` in the type of ``g``, computed in at least float32.

    Raises:
      InputError: the shapes do not fit, or the implementation is unknown.
    """
    check_positions(theta, phi, g)
    check_mask(mask, phi.shape[:-1])
    phi, g = zero_padding(mask, phi), zero_padding(mask, g)
    (n, c), (m, d) = theta.shape[-2:], g.shape[-2:]
    if implementation == "auto":
        dense_is_cheaper = n * m * (c + d) <= (n + m) * c * d and axis_name is None
        implementation = "dense" if dense_is_cheaper else "reassociated"
    form = _form("dot_product", implementation)
    y = form(*map(at_least_float32, (theta, phi, g)), axis_name)
    return (y / count_positions(phi, mask, axis_name)).astype(g.dtype)


def concatenation(
    theta_score: jax.Array,
    phi_score: jax.Array,
    g: jax.Array,
    *,
    mask: jax.Array | None = None,
    axis_name: str | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """y_i = (1/M) sum_j ReLU(w_theta . theta_i + w_phi . phi_j) g_j (NL paper eq. 5).

    The projection of the concatenated pair splits into one score a query and one a key,
    w . [theta_i, phi_j] = a_i + b_j, so that is what this function takes. M as in ``dot_product``.

    Args:
      theta_score: a, ``[..., N]``.
      phi_score: b, ``[..., M]``.
      g: values ``[..., M, D]``.
      mask: ``[..., M]``, False where a key is padding, whose content does not matter.
      axis_name: axis of a ``jax.shard_map`` that the positions are split over, queries and keys.
        Every device gathers b and g.
      implementation: "dense" holds the N x M matrix. "sorted" sorts the scores and takes prefix
        sums, see ``ops._sorting``: O((N + M)(log M + D)) operations, O((N + M) D) memory. "auto"
        takes the dense form up to 2**18 entries and the sorted form, which differentiates in
        reverse mode only, beyond.

    Returns:
      ``[..., N, D]`` in the type of ``g``, computed in at least float32.

    Raises:
      InputError: the shapes do not fit, or the implementation is unknown.
    """
    leading, n, m = g.shape[:-2], theta_score.shape[-1:], g.shape[-2:-1]
    fits = theta_score.shape == leading + n and phi_score.shape == leading + m
    if not (fits and n and m and all(n + m)):
        raise InputError(
            "need theta_score [..., N], phi_score [..., M], g [..., M, D], at least one query and "
            f"one key; got theta_score {theta_score.shape}, phi_score {phi_score.shape}, "
            f"g {g.shape}"
        )
    check_mask(mask, phi_score.shape)
    theta_score, phi_score = theta_score[..., None], phi_score[..., None]
    theta_score, phi_score, g, mask = vary_alike(theta_score, phi_score, g, mask)
    phi_score, g = zero_padding(mask, phi_score), zero_padding(mask, g)
    number = count_positions(g, mask, axis_name)
    dtype = g.dtype
    phi_score, g = _gather((phi_score, g), axis_name, axis=-2)
    if implementation == "auto":
        small = theta_score.shape[-2] * phi_score.shape[-2] <= _SORT_LIMIT
        implementation = "dense" if small else "sorted"
    form = _form("concatenation", implementation)
    y = form(*map(at_least_float32, (theta_score[..., 0], phi_score[..., 0], g)))
    return (y / number).astype(dtype)


def disentangled(
    theta: jax.Array,
    phi: jax.Array,
    g: jax.Array,
    unary: jax.Array,
    *,
    scale: float = 1.0,
    mask: jax.Array | None = None,
    query_mask: jax.Array | None = None,
    axis_name: str | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """DNL: whitened pairwise term plus unary term, sharing the values g.

      y_i = sum_j softmax_j(scale * (theta_i - mean theta) . (phi_j - mean phi)) g_j
          + sum_j softmax_j(unary_j) g_j

    DNL paper eq. 11, means per image and channel over the positions. The convention is that of
    mmsegmentation: the unary term is one vector per image, added before the output projection.
    Centering is done in at least float32: the small temperature multiplies what is left.

    Args:
      theta: queries ``[..., N, C]``.
      phi: keys ``[..., M, C]``.
      g: values ``[..., M, D]``.
      unary: scores ``[..., M]``.
      scale: factor on the pairwise logits, 1/(sqrt(C) * temperature).
      mask: ``[..., M]``, False where a key is padding, whose content does not matter.
      query_mask: the same for the queries, ``[..., N]``: padding is no part of the mean of theta.
      axis_name: axis of a ``jax.shard_map`` that the positions are split over, queries and keys.
      implementation: as in ``softmax_attention``.

    Returns:
      ``[..., N, D]`` in the type of ``g``.

    Raises:
      InputError: the shapes do not fit, or the implementation is unknown.
    """
    check_positions(theta, phi, g)
    if (mask is None) != (query_mask is None):
        raise InputError("give mask and query_mask together: keys and queries have a mean each")
    check_mask(query_mask, theta.shape[:-1], "query_mask")
    shared = {"axis_name": axis_name}
    pairwise = softmax_attention(
        channel_whiten(theta, mask=query_mask, **shared),
        channel_whiten(phi, mask=mask, **shared),
        g,
        scale=scale,
        mask=mask,
        implementation=implementation,
        **shared,
    )
    return pairwise + context_pool(g, unary, mask=mask, **shared)
