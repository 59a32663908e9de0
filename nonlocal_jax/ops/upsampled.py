"""Cross entropy of resized logits, which materializes one block of them at a time.

All rows are resized at once. Columns are resized block by block, in a loop that computes the loss
and its gradient in the same pass. A block spans all images and rows. Both may be split over
devices, and the loop needs no communication.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import at_least_float32, check_floating
from nonlocal_jax.ops.resize import bilinear_weights, resize

_COLUMNS = 128  # the most columns in a block: the number of lanes of a TPU


def _column_blocks(size: int, new_size: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """For n blocks, the first of its k source columns, ``[n]``, and the weights ``[n, width, k]``.

    Columns that pad the last block have zero weights.
    """
    n = -(-new_size // _COLUMNS)
    width = -(-new_size // n)
    weights = bilinear_weights(size, new_size, align_corners)
    weights = np.pad(weights, ((0, n * width - new_size), (0, 0))).reshape(n, width, size)
    used = weights.any(axis=1)
    first, end = used.argmax(axis=1), size - used[:, ::-1].argmax(axis=1)
    k = (end - first).max()
    starts = np.minimum(first, size - k)
    return starts, np.stack([w[:, s : s + k] for w, s in zip(weights, starts, strict=True)])


def _block_sums(
    source: jax.Array, weights: jax.Array, labels: jax.Array, ignore_index: int
) -> tuple[jax.Array, jax.Array]:
    """The losses and correct predictions of a block, from source columns ``[B, H, classes, k]``.

    Both are ``[B, H]``. A sum over images and rows would need communication inside the loop.
    """
    logits = jnp.einsum("bhck,wk->bhcw", source, weights, precision=jax.lax.Precision.HIGHEST)
    # A comparison instead of a gather, whose gradient would be a scatter.
    picked = (
        labels[:, :, None] == jnp.arange(logits.shape[2], dtype=labels.dtype)[None, None, :, None]
    )
    losses = jax.nn.logsumexp(logits, axis=2) - jnp.sum(logits, axis=2, where=picked)
    losses = jnp.where(jnp.any(picked, axis=2), losses, jnp.nan)
    counted = labels != ignore_index
    correct = jax.lax.argmax(logits, 2, labels.dtype) == labels
    return jnp.sum(losses, -1, where=counted), jnp.sum(correct, -1, where=counted)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _sums(
    rows: jax.Array, starts: jax.Array, weights: jax.Array, labels: jax.Array, ignore_index: int
) -> tuple[jax.Array, jax.Array]:
    """``_block_sums`` of all n blocks: rows ``[B, H, classes, w]``, labels ``[n, B, H, width]``."""

    def step(_, block):
        start, weights, labels = block
        source = jax.lax.dynamic_slice_in_dim(rows, start, weights.shape[-1], axis=-1)
        return None, _block_sums(source, weights, labels, ignore_index)

    _, sums = jax.lax.scan(step, None, (starts, weights, labels))
    return jax.tree.map(lambda blocks: jnp.sum(blocks, axis=0), sums)


def _forward(rows, starts, weights, labels, ignore_index):
    """Computes the gradient of a block together with its loss, so nothing is computed twice."""

    def step(gradient, block):
        start, weights, labels = block
        k = weights.shape[-1]
        source = jax.lax.dynamic_slice_in_dim(rows, start, k, axis=-1)
        losses, vjp, correct = jax.vjp(
            lambda source: _block_sums(source, weights, labels, ignore_index), source, has_aux=True
        )
        (new,) = vjp(jnp.ones_like(losses))
        # Added, because neighboring blocks share source columns.
        new += jax.lax.dynamic_slice_in_dim(gradient, start, k, axis=-1)
        gradient = jax.lax.dynamic_update_slice_in_dim(gradient, new, start, axis=-1)
        return gradient, (losses, correct)

    gradient, sums = jax.lax.scan(step, jnp.zeros_like(rows), (starts, weights, labels))
    return jax.tree.map(lambda blocks: jnp.sum(blocks, axis=0), sums), gradient


def _backward(ignore_index, gradient, cotangents):
    return cotangents[0][..., None, None] * gradient, None, None, None


_sums.defvjp(_forward, _backward)


def upsampled_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, ignore_index: int, align_corners: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of bilinearly resized logits, and the number of correct predictions.

    ::

        loss    = sum_p -log softmax(resize(logits)_p)[label_p]
        correct = sum_p [argmax(resize(logits)_p) = label_p]

    The sums are over the pixels p whose label is not ``ignore_index``. [a = b] is 1 if a equals b,
    else 0. ``resize`` is ``nonlocal_jax.ops.resize``. At most 128 columns of the resized logits are
    in memory at a time, forward and backward. All numbers are computed in at least float32.

    A label that is neither a class nor ``ignore_index`` makes the loss NaN. The gradient does not
    depend on its pixel.

    Args:
      logits: Floating-point logits ``[B, h, w, classes]`` before the resize.
      labels: Integers ``[B, H, W]``.
      ignore_index: Pixels with this label count in neither sum.
      align_corners: See ``resize``.

    Returns:
      Two scalars, loss and correct. Only the loss has a gradient. It supports only reverse-mode
      differentiation.

    Raises:
      InputError: The shapes do not match, the logits are not floating-point, or the labels are not
        integers.
    """
    check_floating(logits=logits)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(f"labels has dtype {labels.dtype}; use integers")
    if logits.ndim != 4 or labels.ndim != 3 or logits.shape[0] != labels.shape[0]:
        raise InputError(
            f"logits has shape {logits.shape} and labels has shape {labels.shape}; "
            "use logits [B, h, w, classes] and labels [B, H, W]"
        )
    (_, height, width), columns = labels.shape, logits.shape[2]
    rows = resize(at_least_float32(logits), (height, columns), align_corners=align_corners)
    starts, weights = _column_blocks(columns, width, align_corners)
    n, block = weights.shape[:2]
    labels = jnp.pad(
        labels.astype(jnp.int32),
        ((0, 0), (0, 0), (0, n * block - width)),
        constant_values=ignore_index,
    )
    losses, correct = _sums(
        # With columns last, the products need no transposition and fill the lanes.
        jnp.swapaxes(rows, -1, -2),
        jnp.asarray(starts),
        jnp.asarray(weights, rows.dtype),
        jnp.moveaxis(labels.reshape(*labels.shape[:2], n, block), 2, 0),
        ignore_index,
    )
    return jnp.sum(losses), jnp.sum(correct)
