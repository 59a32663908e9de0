"""Evaluation of a video classification network on a dataset."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from nonlocal_jax._interrupt import check_interrupted, until_stopped
from nonlocal_jax._progress import progress, report_compilation
from nonlocal_jax.data import Example, Source, read_views
from nonlocal_jax.data.clips import clip_label
from nonlocal_jax.errors import InputError
from nonlocal_jax.evaluation._source import dataset_classes, examples_of_process
from nonlocal_jax.evaluation.metrics import gather_shares, or_none, percent
from nonlocal_jax.evaluation.videos import Variables, VideoPredictor, quick_config
from nonlocal_jax.sharding import Shardings

# The views of this many videos are read while the devices compute. They can be large: 30 views of
# 32 frames of 256x256 pixels take 190 MB, and those of 128 frames 750 MB.
_READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
_TITLES = {"top1": "top-1", "top5": "top-5", "map": "mAP"}


def top_k_correct(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Returns whether the class of each video is among the k classes with the highest scores.

    Of classes with the same score, the one with the smaller index is first.

    Args:
      scores: ``[V, classes]``.
      labels: Classes, integers ``[V]``.
      k: Number of classes.

    Returns:
      Booleans ``[V]``. Their mean is the top-k accuracy.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.any(best == labels[:, None], axis=1)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Computes the average precision of every class over videos, as Charades' script does.

    The videos are sorted by the score of the class, from high to low. With y_r = 1 if the video at
    rank r = 1, 2, ... has the class, else 0::

        AP = sum_r y_r P_r / sum_r y_r,  P_r = 1/r sum_{s <= r} y_s

    There is no interpolation. Videos with the same score keep their order. As in the official
    script, ``Charades_v1_classify.m``, videos without any label get the score minus infinity for
    all classes: they rank last.

    Args:
      scores: Probabilities or logits ``[V, classes]``.
      labels: 1 for the classes of each video and 0 for the others, ``[V, classes]``.

    Returns:
      AP as fractions of one, ``[classes]``. NaN for classes that no video has (0/0, as in the
      script). In Charades every class occurs. The mean over the other classes is the mAP.
    """
    labels = np.asarray(labels) == 1
    scores = np.where(np.any(labels, axis=1, keepdims=True), scores, -np.inf)
    order = np.argsort(-scores, axis=0, kind="stable")
    positive = np.take_along_axis(labels, order, axis=0)
    precision = np.cumsum(positive, axis=0) / np.arange(1, len(scores) + 1)[:, None]
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.sum(precision * positive, axis=0) / np.sum(positive, axis=0)


def evaluator(
    config: ConfigDict,
    source: Source,
    *,
    quick: bool = False,
    multi_scale: bool = False,
    shardings: Shardings | None = None,
) -> Callable[[Variables], dict[str, Any]]:
    """Returns a function that measures variables on all videos of a source.

    If the mesh of ``shardings`` spans several processes, they evaluate every batch together.
    Otherwise each process evaluates its share of the videos, and receives the scores of all.

    Args:
      config: Config of the experiment.
      source: The videos, see ``data.prepare_clip``.
      quick: Whether to use one view of each video, see ``quick_config``. This takes a fraction of
        the time. Its metrics are not comparable with published ones, which have 10 or 30 views, so
        their names end in "_1clip".
      multi_scale: Not for videos. The config sets the views.
      shardings: See ``VideoPredictor``.

    Returns:
      ``run(variables)``. It returns, as fractions of one, "top1", "top5" (if there are more than 5
      classes) and "mean_class_accuracy", the mean of the top-1 accuracies of the classes that
      occur; or for ``loss.kind="sigmoid"`` "map", see ``average_precision``. Also the value for
      each class, the number of ``videos``, the ``protocol``, and the names of the ``dataset`` and
      of its ``classes``. The function raises an ``InputError`` if there are no videos, or if one
      of them is invalid.

    Raises:
      InputError: ``multi_scale`` is set, the source has no random access, its dataset has another
        number of classes than the model, or ``shardings`` is something else.
    """
    if multi_scale:
        raise InputError(
            "--multi_scale (multi_scale) is only for images; leave it out, and set "
            "config.evaluation.clips and config.evaluation.crops"
        )
    config = quick_config(config) if quick else config
    predictor = VideoPredictor(config, shardings=shardings)
    name, classes = dataset_classes(source, config)
    together = shardings is not None and shardings.mesh.is_multi_process
    if config.loss.kind == "softmax":
        summarize, label_shape = _accuracies, ()
    else:
        summarize, label_shape = _precisions, (len(classes),)
    compiled = False

    def run(variables: Variables) -> dict[str, Any]:
        nonlocal compiled
        examples = examples_of_process(source, together=together)
        labels = []
        if not compiled:
            report_compilation("the network")
        compiled = True

        def views() -> Iterator[np.ndarray]:
            read = examples.map(functools.partial(_read, config)).to_iter_dataset(_READ_OPTIONS)
            description = f"evaluating {predictor.protocol['name']}"
            shown = progress(read, len(examples), description, unit="video")
            for of_video, label in until_stopped(shown, together=together):
                labels.append(label)
                yield of_video

        scores = np.array(list(predictor(variables)(views()))).reshape(-1, len(classes))
        labels = np.array(labels, np.float64).reshape(len(scores), *label_shape)
        if not together:
            scores, labels = (gather_shares(share, len(source)) for share in (scores, labels))
        check_interrupted()
        summary = summarize(scores, labels)
        if quick:
            summary = {
                f"{key}_1clip" if isinstance(value, float) else key: value
                for key, value in summary.items()
            }
        return {
            **summary,
            "videos": len(source),
            "protocol": predictor.protocol,
            "dataset": name,
            "classes": classes,
        }

    return run


def _read(config: ConfigDict, example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Returns the views of a video and its label: a class, or 0 and 1 for every class."""
    label = clip_label(example, config.loss.kind, config.model.num_classes)
    return read_views(example["video"], config), label


def _accuracies(scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    num_classes, labels = scores.shape[1], labels.astype(int)
    ks = (1, 5) if num_classes > 5 else (1,)  # with fewer classes, top-5 is always 1
    correct = {f"top{k}": top_k_correct(scores, labels, k) for k in ks}
    counts, hits = (
        np.bincount(labels, weights, num_classes) for weights in (None, correct["top1"])
    )
    with np.errstate(invalid="ignore"):  # 0 / 0
        accuracy = hits / counts
    return {
        **{name: float(np.mean(values)) for name, values in correct.items()},
        "mean_class_accuracy": float(np.nanmean(accuracy)),
        "accuracy": accuracy,
    }


def _precisions(scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    precision = average_precision(scores, labels)
    if np.all(np.isnan(precision)):
        raise InputError("no video has a label, so no metric is defined; check the split")
    return {"map": float(np.nanmean(precision)), "average_precision": precision}


def report(summary: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Reports an evaluation, as text and as plain values.

    Args:
      summary: The result of the function that ``evaluator`` returns.

    Returns:
      A Markdown table in percent, with the protocol, and a dict for JSON. In the dict the metrics
      are fractions of one, and None where they are undefined.
    """
    protocol = summary["protocol"]
    metrics = {name: value for name, value in summary.items() if isinstance(value, float)}
    of_class = "average_precision" if "average_precision" in summary else "accuracy"
    values = {
        "dataset": summary["dataset"],
        "videos": summary["videos"],
        "protocol": protocol,
        **metrics,
        "classes": [
            {"name": name, of_class: or_none(value)}
            for name, value in zip(summary["classes"], summary[of_class], strict=True)
        ],
    }
    rows = [(_title(name), percent(value)) for name, value in metrics.items()]
    rows = [(protocol["name"], "%"), *rows]
    width = max(len(title) for title, _ in rows)
    lines = [f"| {title.ljust(width)} | {value:>6} |" for title, value in rows]
    lines.insert(1, f"|{'-' * (width + 2)}|-------:|")
    lines += ["", f"{protocol['name']}: {protocol['description']}."]
    return "\n".join(lines), values


def _title(name: str) -> str:
    name = name.removesuffix("_1clip")
    return _TITLES.get(name, name.replace("_", " "))
