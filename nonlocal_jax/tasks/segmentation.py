"""The task of semantic segmentation: a class for every pixel."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nonlocal_jax.config import boolean, choice, integer, number, sequence, text
from nonlocal_jax.data import IGNORE_INDEX, normalize
from nonlocal_jax.ops import upsampled_cross_entropy
from nonlocal_jax.sharding import split_positions
from nonlocal_jax.tasks.task import Batch, Example, Task

# mmsegmentation adds the float32 epsilon to the number of pixels it divides by.
_EPSILON = float(jnp.finfo(jnp.float32).eps)

_LEAVES = {
    "data.name": text(),
    "data.base_size": sequence(integer(1), 2),
    "data.crop": sequence(integer(1), 2),
    "data.scale_range": sequence(number(above=0), 2, ascending=True),
    "data.category_max_ratio": number(above=0, high=1),
    "data.flip": number(0, 1),
    "data.photometric": boolean(),
    "data.mean": sequence(number(), 3),
    "data.std": sequence(number(above=0), 3),
    "loss.auxiliary_weight": number(0),
    "loss.avg_non_ignore": boolean(),
    "loss.align_corners": boolean(),
    "evaluation.mode": choice("whole", "slide"),
    "evaluation.base_size": sequence(integer(1), 2),
    "evaluation.crop": sequence(integer(1), 2),
    "evaluation.stride": sequence(integer(1), 2),
    "evaluation.ratios": sequence(number(above=0), empty=False),
    "evaluation.flip": boolean(),
}


def _batch(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    pixels = (config.data.batch_size, *config.data.crop)
    return {
        "image": jax.ShapeDtypeStruct((*pixels, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct(pixels, jnp.uint8),
    }


def _inputs(batch: Batch, config: ConfigDict) -> jax.Array:
    """Returns normalized RGB images. They are normalized on the device."""
    return split_positions(normalize(batch["image"], config.data.mean, config.data.std))


def _cross_entropy(
    logits: jax.Array, labels: jax.Array, *, avg_non_ignore: bool, align_corners: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean of -log softmax(logits)[label], and the accuracy."""
    total, correct = upsampled_cross_entropy(
        logits, labels, ignore_index=IGNORE_INDEX, align_corners=align_corners
    )
    counted = jnp.sum(labels != IGNORE_INDEX)
    number = _number_of_pixels(labels, avg_non_ignore, total.dtype)
    return total / number, correct / jnp.maximum(counted, 1)


def _number_of_pixels(
    labels: jax.Array, avg_non_ignore: bool, dtype: jax.typing.DTypeLike
) -> jax.Array | float:
    """Returns the number that the sum over the pixels is divided by."""
    counted = jnp.sum(labels != IGNORE_INDEX)
    return (counted.astype(dtype) if avg_non_ignore else labels.size) + _EPSILON


def _loss_and_accuracy(
    outputs: tuple[jax.Array, jax.Array], labels: jax.Array, config: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    options = {key: config[key] for key in ("avg_non_ignore", "align_corners")}
    decode, accuracy = _cross_entropy(outputs[0], labels, **options)
    aux = config["auxiliary_weight"] * _cross_entropy(outputs[1], labels, **options)[0]
    return decode + aux, {"decode": decode, "aux": aux, "accuracy": accuracy}


def loss_fn(
    outputs: tuple[jax.Array, jax.Array], labels: jax.Array, config: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the loss of mmsegmentation: cross entropy of the decode and the auxiliary head.

    With logits z resized to the size of the labels, N the number of pixels and w the
    ``auxiliary_weight``::

        loss = CE(z_decode) + w CE(z_aux)
        CE(z) = -1/N sum_i log softmax(z_i)[label_i]

    Pixels with the label 255 are ignored: they do not contribute to the sum. They are counted in N
    unless ``avg_non_ignore`` is True, because the published models were trained that way.

    Args:
      outputs: Logits of the decode head and of the auxiliary head at the size of the feature map,
        ``[B, h, w, classes]``.
      labels: Integers ``[B, H, W]``: classes, or 255. Other values make the loss NaN.
      config: The options: ``auxiliary_weight``; ``avg_non_ignore``, whether N excludes ignored
        pixels; ``align_corners``, see ``ops.resize``.

    Returns:
      The loss and its parts "decode" and "aux" (weighted). They are scalars, at least float32.

    Raises:
      InputError: The shapes do not match.
    """
    loss, parts = _loss_and_accuracy(outputs, labels, config)
    del parts["accuracy"]
    return loss, parts


def _loss(
    outputs: tuple[jax.Array, jax.Array], batch: Batch, config: ConfigDict
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes ``loss_fn``, and the decode head's accuracy over the pixels that are not ignored."""
    return _loss_and_accuracy(outputs, split_positions(batch["label"]), config.loss.to_dict())


def _loss_weight(batch: Batch, config: ConfigDict) -> jax.Array | float:
    return _number_of_pixels(batch["label"], config.loss.avg_non_ignore, float)


def _prepare(
    example: Example, config: ConfigDict, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    from nonlocal_jax.data import prepare_example

    return prepare_example(example, config.data, config.model.num_classes, rng)


def _open_source(config: ConfigDict, split: str, data_dir: Any = None) -> Any:
    from nonlocal_jax import data

    source = data.load_source(config.data.name, split, data_dir)
    source.dataset.check_num_classes(config.model.num_classes)
    return source


def _evaluator(config: ConfigDict, source: Any, *, quick: bool = False, **options: Any) -> Any:
    from nonlocal_jax import evaluation

    del quick  # the published protocol of one scale is used during training, too
    return evaluation.evaluator(config, source, **options)


def _report(summary: Mapping[str, Any], _: ConfigDict) -> tuple[str, dict[str, Any]]:
    from nonlocal_jax import evaluation

    return evaluation.report(summary)


def _predictor(config: ConfigDict, **options: Any) -> Any:
    from nonlocal_jax.tasks import predict

    return predict.image_predictor(config, **options)


TASK = Task(
    headline="miou",
    leaves=_LEAVES,
    batch=_batch,
    inputs=_inputs,
    loss=_loss,
    loss_weight=_loss_weight,
    prepare=_prepare,
    open_source=_open_source,
    evaluator=_evaluator,
    report=_report,
    predictor=_predictor,
)
