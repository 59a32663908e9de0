"""The segmentation loss of mmsegmentation."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops import resize
from nonlocal_jax.ops.numerics import at_least_float32

# mmsegmentation adds the float32 epsilon to the number of pixels it divides by.
_EPSILON = float(jnp.finfo(jnp.float32).eps)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, ignore_index: int, avg_non_ignore: bool
) -> jax.Array:
    """Sum of -log softmax(logits)[label] over the pixels, divided by their number.

    Pixels labelled ``ignore_index`` add nothing to the sum; they do count in the number unless
    ``avg_non_ignore``: the published models were trained so.

    Args:
      logits: ``[B, H, W, classes]``.
      labels: ``[B, H, W]``, integers.
      ignore_index: the label to leave out.
      avg_non_ignore: divide by the pixels that were not left out.

    Returns:
      A scalar, at least float32.

    Raises:
      InputError: the shapes do not fit.
    """
    if logits.shape[:-1] != labels.shape:
        raise InputError(
            f"need logits [B, H, W, classes] and labels [B, H, W]; "
            f"got {logits.shape} and {labels.shape}"
        )
    logits = at_least_float32(logits)
    labels = labels.astype(jnp.int32)
    # A comparison in place of a gather: its gradient is no scatter.
    picked = labels[..., None] == jnp.arange(logits.shape[-1])
    pixel_loss = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(logits, axis=-1, where=picked)
    counted = labels != ignore_index
    total = jnp.sum(pixel_loss, where=counted)
    number = jnp.sum(counted) if avg_non_ignore else labels.size
    return total / (number + _EPSILON)


def loss_fn(
    outputs: tuple[jax.Array, jax.Array], labels: jax.Array, config: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The decode head's cross entropy plus ``auxiliary_weight`` times the auxiliary head's.

    Both logits are first resized to the labels' size.

    Args:
      outputs: logits of the decode and the auxiliary head at the size of the feature map.
      labels: ``[B, H, W]``, integers.
      config: ``auxiliary_weight``, ``ignore_index``, ``avg_non_ignore`` and ``align_corners``.

    Returns:
      The loss and its parts, ``decode`` and ``aux``, the latter weighted.

    Raises:
      InputError: the shapes do not fit.
    """

    def head_loss(logits):
        resized = resize(logits, labels.shape[1:], align_corners=config["align_corners"])
        return cross_entropy(
            resized,
            labels,
            ignore_index=config["ignore_index"],
            avg_non_ignore=config["avg_non_ignore"],
        )

    decode, aux = outputs
    parts = {
        "decode": head_loss(decode),
        "aux": config["auxiliary_weight"] * head_loss(aux),
    }
    return parts["decode"] + parts["aux"], parts
