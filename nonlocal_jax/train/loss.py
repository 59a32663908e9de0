"""The segmentation loss of mmsegmentation."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nonlocal_jax.data import IGNORE_INDEX
from nonlocal_jax.ops import upsampled_cross_entropy

# mmsegmentation adds the float32 epsilon to the number of pixels it divides by.
_EPSILON = float(jnp.finfo(jnp.float32).eps)


def _cross_entropy(
    logits: jax.Array, labels: jax.Array, *, avg_non_ignore: bool, align_corners: bool
) -> tuple[jax.Array, jax.Array]:
    """Mean of -log softmax(logits)[label], and the share of the highest logits that are right."""
    total, correct = upsampled_cross_entropy(
        logits, labels, ignore_index=IGNORE_INDEX, align_corners=align_corners
    )
    counted = jnp.sum(labels != IGNORE_INDEX)
    number = counted if avg_non_ignore else labels.size
    return total / (number + _EPSILON), correct / jnp.maximum(counted, 1)


def loss_and_accuracy(
    outputs: tuple[jax.Array, jax.Array], labels: jax.Array, config: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``loss_fn`` with the ``accuracy`` of the decode head among the parts.

    It is the share of the pixels, ignored ones left out, whose highest logit is the label's.
    """
    options = {key: config[key] for key in ("avg_non_ignore", "align_corners")}
    decode, accuracy = _cross_entropy(outputs[0], labels, **options)
    aux = config["auxiliary_weight"] * _cross_entropy(outputs[1], labels, **options)[0]
    return decode + aux, {"decode": decode, "aux": aux, "accuracy": accuracy}


def loss_fn(
    outputs: tuple[jax.Array, jax.Array], labels: jax.Array, config: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The decode head's cross entropy plus ``auxiliary_weight`` times the auxiliary head's.

    The cross entropy is the sum of -log softmax(logits)[label] over the pixels, divided by their
    number; the logits are first resized to the labels' size. Pixels labelled 255 add nothing to the
    sum. They do count in the number, unless ``avg_non_ignore``: the published models were trained
    so.

    Args:
      outputs: logits of the decode and the auxiliary head at the size of the feature map,
        ``[B, h, w, classes]``.
      labels: ``[B, H, W]``, integers: classes or 255. Others are not checked for.
      config: ``auxiliary_weight``; ``avg_non_ignore``, divide by the pixels that are not left out;
        ``align_corners``, see ``ops.resize``.

    Returns:
      The loss and its parts, ``decode`` and ``aux``, the latter weighted; scalars, at least
      float32.

    Raises:
      InputError: the shapes do not fit.
    """
    loss, parts = loss_and_accuracy(outputs, labels, config)
    del parts["accuracy"]
    return loss, parts
