"""The segmentation loss of mmsegmentation."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nonlocal_jax.ops import upsampled_cross_entropy

# mmsegmentation adds the float32 epsilon to the number of pixels it divides by.
_EPSILON = float(jnp.finfo(jnp.float32).eps)


def _cross_entropy_and_accuracy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_index: int,
    avg_non_ignore: bool,
    align_corners: bool = False,
) -> tuple[jax.Array, jax.Array]:
    total, correct = upsampled_cross_entropy(
        logits, labels, ignore_index=ignore_index, align_corners=align_corners
    )
    counted = jnp.sum(labels != ignore_index)
    number = counted if avg_non_ignore else labels.size
    return total / (number + _EPSILON), correct / jnp.maximum(counted, 1)


def cross_entropy(logits: jax.Array, labels: jax.Array, **options: Any) -> jax.Array:
    """Sum of -log softmax(logits)[label] over the pixels, divided by their number.

    The logits are first resized to the labels' size. Pixels labelled ``ignore_index`` add nothing
    to the sum; they do count in the number unless ``avg_non_ignore``: the published models were
    trained so.

    Args:
      logits: ``[B, h, w, classes]``.
      labels: ``[B, H, W]``, integers.
      **options: ``ignore_index``, the label to leave out; ``avg_non_ignore``: divide by the pixels
        that were not left out; ``align_corners``, False unless given: see ``ops.resize``.

    Returns:
      A scalar, at least float32.

    Raises:
      InputError: the shapes do not fit.
    """
    return _cross_entropy_and_accuracy(logits, labels, **options)[0]


def loss_and_accuracy(
    outputs: tuple[jax.Array, jax.Array], labels: jax.Array, config: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``loss_fn`` with the ``accuracy`` of the decode head among the parts.

    It is the share of the pixels, ignored ones left out, whose highest logit is the label's.
    """
    options = {key: config[key] for key in ("ignore_index", "avg_non_ignore", "align_corners")}
    decode, accuracy = _cross_entropy_and_accuracy(outputs[0], labels, **options)
    aux = config["auxiliary_weight"] * cross_entropy(outputs[1], labels, **options)
    return decode + aux, {"decode": decode, "aux": aux, "accuracy": accuracy}


def loss_fn(
    outputs: tuple[jax.Array, jax.Array], labels: jax.Array, config: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The decode head's cross entropy plus ``auxiliary_weight`` times the auxiliary head's.

    Both logits are resized to the labels' size.

    Args:
      outputs: logits of the decode and the auxiliary head at the size of the feature map.
      labels: ``[B, H, W]``, integers.
      config: ``auxiliary_weight``, ``ignore_index``, ``avg_non_ignore`` and ``align_corners``.

    Returns:
      The loss and its parts, ``decode`` and ``aux``, the latter weighted.

    Raises:
      InputError: the shapes do not fit.
    """
    loss, parts = loss_and_accuracy(outputs, labels, config)
    del parts["accuracy"]
    return loss, parts
