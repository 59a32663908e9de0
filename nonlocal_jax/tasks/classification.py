"""The task of video classification: one class, or any number of classes, for a whole clip."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nonlocal_jax.config import Leaf, choice, integer, number, sequence, text
from nonlocal_jax.data import normalize
from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import at_least_float32
from nonlocal_jax.sharding import split_positions
from nonlocal_jax.tasks.task import Batch, Example, Task


def _empty_or(leaf: Leaf) -> Leaf:
    def accepts(value: Any) -> bool:
        return value in ((), []) or leaf.accepts(value)

    return Leaf(f"() or {leaf.one}", f"values that are () or {leaf.one}", accepts)


_LEAVES = {
    "data.name": text(),
    "data.frames": integer(1),
    "data.interval": integer(1),
    "data.sampling": choice("clip", "segments"),
    "data.short_side": sequence(integer(1), 2, ascending=True),
    "data.long_side": choice("floor", "round"),
    "data.crop": integer(1),
    "data.crop_scales": sequence(number(above=0, high=1)),
    "data.crop_positions": choice(5, 13),
    "data.crop_scale_gap": choice(0, 1),
    "data.crop_area": _empty_or(sequence(number(above=0, high=1), 2, ascending=True)),
    "data.flip": number(0, 1),
    "data.mean": sequence(number(), 3),
    "data.std": sequence(number(above=0), 3),
    "loss.kind": choice("softmax", "sigmoid"),
    "evaluation.clips": integer(1),
    "evaluation.crops": choice(1, 3, 10),
    "evaluation.starts": choice("wrap", "even", "segments"),
    "evaluation.short_side": integer(1),
    "evaluation.crop": integer(1),
    # Frames, height and width, 0 for a whole axis.
    "evaluation.window": _empty_or(sequence(integer(0), 3)),
    "evaluation.average": choice("probabilities", "logits"),
    "train.precise_batch_norm": integer(0),
}


def _check(config: ConfigDict) -> None:
    data, evaluation = config.data, config.evaluation
    if data.crop > data.short_side[0] and not (data.crop_area or data.crop_scales):
        raise InputError(
            f"data.crop={data.crop} is larger than frames with a shorter side of "
            f"{data.short_side[0]} pixels; use a larger data.short_side, or crops that are resized "
            "(data.crop_scales or data.crop_area)"
        )
    if evaluation.crop > evaluation.short_side:
        raise InputError(
            f"evaluation.crop={evaluation.crop} is larger than "
            f"evaluation.short_side={evaluation.short_side}; use at most this size"
        )
    if evaluation.starts == "segments" and evaluation.clips != 1:
        raise InputError(
            f"evaluation.starts=segments has one clip, but evaluation.clips={evaluation.clips}; "
            "use 1"
        )


def _batch(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    number, data = config.data.batch_size, config.data
    if config.loss.kind == "softmax":
        label = jax.ShapeDtypeStruct((number,), jnp.int32)
    else:
        label = jax.ShapeDtypeStruct((number, config.model.num_classes), jnp.float32)
    clip = (number, data.frames, data.crop, data.crop, 3)
    return {"clip": jax.ShapeDtypeStruct(clip, jnp.uint8), "label": label}


def _inputs(batch: Batch, config: ConfigDict) -> jax.Array:
    """Returns normalized RGB clips. They are normalized on the device."""
    return split_positions(normalize(batch["clip"], config.data.mean, config.data.std))


def loss_fn(
    outputs: jax.Array, labels: jax.Array, config: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the cross entropy of a softmax or of independent sigmoids.

    With logits z, B clips and C classes::

        softmax:  loss = -1/B sum_b log softmax(z_b)[label_b]
        sigmoid:  loss = -1/(B C) sum_bc (y_bc log s(z_bc) + (1 - y_bc) log(1 - s(z_bc)))

    s is the logistic function. Both are computed from the logits, so large logits do not overflow.
    "sigmoid" is the loss of the Charades experiments of the NL paper.

    Args:
      outputs: Logits ``[B, classes]``.
      labels: For "softmax" the classes ``[B]``, integers. Values that are not classes make the loss
        NaN. For "sigmoid" 1 for the classes of each clip and 0 for the others, ``[B, classes]``.
      config: ``kind`` is "softmax" or "sigmoid".

    Returns:
      The loss, and the dict of its only part: "cross_entropy" or "binary_cross_entropy". The loss
      is a scalar, at least float32.

    Raises:
      InputError: ``kind`` is unknown, or the labels do not have its shape or type.
    """
    logits, labels = at_least_float32(jnp.asarray(outputs)), jnp.asarray(labels)
    kind = config["kind"]
    if kind not in ("softmax", "sigmoid"):
        raise InputError(f"loss.kind is {kind!r}; use 'softmax' or 'sigmoid'")
    if logits.ndim != 2:
        raise InputError(f"the logits have the shape {logits.shape}; use [B, classes]")
    expected = logits.shape[:1] if kind == "softmax" else logits.shape
    if labels.shape != expected:
        name = "[B]" if kind == "softmax" else "[B, classes]"
        raise InputError(
            f"the labels have the shape {labels.shape}, but loss.kind={kind!r} needs {name}, here "
            f"{expected}"
        )
    if kind == "softmax":
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise InputError(
                f"the labels are {labels.dtype}, but loss.kind='softmax' needs integers"
            )
        classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, 1)
        picked = jnp.where(classes == labels[:, None], jax.nn.log_softmax(logits), 0)
        known = (labels >= 0) & (labels < logits.shape[1])
        loss = -jnp.mean(jnp.where(known, jnp.sum(picked, axis=1), jnp.nan))
        return loss, {"cross_entropy": loss}
    labels = labels.astype(logits.dtype)
    # log(1 - s(z)) = log s(-z)
    positive, negative = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    loss = -jnp.mean(labels * positive + (1 - labels) * negative)
    return loss, {"binary_cross_entropy": loss}


def _loss(
    outputs: jax.Array, batch: Batch, config: ConfigDict
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes ``loss_fn``, and for "softmax" the top-1 accuracy."""
    labels = batch["label"]
    loss, _ = loss_fn(outputs, labels, config.loss)
    if config.loss.kind == "sigmoid":
        return loss, {}
    return loss, {"accuracy": jnp.mean(jnp.argmax(outputs, axis=1) == labels, dtype=loss.dtype)}


def _prepare(
    example: Example, config: ConfigDict, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    from nonlocal_jax.data import prepare_clip

    return prepare_clip(example, config, rng)


def _open_source(config: ConfigDict, split: str, data_dir: Any = None) -> Any:
    from nonlocal_jax import data
    from nonlocal_jax.data.clips import clip_label

    source = data.load_source(config.data.name, split, data_dir)
    source.dataset.check_num_classes(config.model.num_classes)
    # A dataset has either one class or a list of classes for every video.
    clip_label(source[0], config.loss.kind, config.model.num_classes)
    return source


def _evaluator(config: ConfigDict, source: Any, **options: Any) -> Any:
    from nonlocal_jax.evaluation import classification

    return classification.evaluator(config, source, **options)


def _report(summary: Mapping[str, Any], _: ConfigDict) -> tuple[str, dict[str, Any]]:
    from nonlocal_jax.evaluation import classification

    return classification.report(summary)


def _headline(config: ConfigDict) -> str:
    return "map_1clip" if config.loss.kind == "sigmoid" else "top1_1clip"


def _predictor(config: ConfigDict, **options: Any) -> Any:
    from nonlocal_jax.tasks import predict

    return predict.video_predictor(config, **options)


TASK = Task(
    headline=_headline,
    leaves=_LEAVES,
    batch=_batch,
    inputs=_inputs,
    loss=_loss,
    prepare=_prepare,
    open_source=_open_source,
    evaluator=_evaluator,
    report=_report,
    predictor=_predictor,
    check=_check,
)
