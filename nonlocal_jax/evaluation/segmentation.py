"""Evaluation of a segmentation network on a dataset."""

from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from nonlocal_jax._progress import progress
from nonlocal_jax.data import Source, check_example, get_dataset
from nonlocal_jax.errors import InputError
from nonlocal_jax.evaluation.inference import Predictor, Variables
from nonlocal_jax.evaluation.metrics import (
    confusion_matrix,
    markdown_table,
    sum_over_processes,
    summarize,
)
from nonlocal_jax.sharding import Shardings

# This many threads read and decode examples while the device computes.
_READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)

_confusion_matrix = jax.jit(confusion_matrix, static_argnums=2)


def evaluator(
    config: Mapping[str, Any],
    source: Source,
    *,
    multi_scale: bool = False,
    shardings: Shardings | None = None,
) -> Callable[[Variables], dict[str, Any]]:
    """Returns a function that measures variables on all examples of a source.

    As in the published evaluations, images are evaluated one at a time, and one confusion matrix at
    the size of the labels counts all pixels. The network is compiled once for each image size, not
    once for each call.

    If the mesh of ``shardings`` spans several processes, they evaluate every image together.
    Otherwise each process evaluates its share of the examples, and the confusion matrices are
    summed at the end.

    Args:
      config: Config of the experiment, see ``Predictor``.
      source: The examples, see ``nonlocal_jax.data.Source``.
      multi_scale: Whether to use all scales of the config and its flip.
      shardings: Where the variables are placed, see ``Predictor``.

    Returns:
      ``run(variables)``. It returns the metrics of ``summarize``, the number of ``images`` and the
      ``protocol``. It raises an ``InputError`` if there are no examples, or if one of them is
      invalid.
    """
    predictor = Predictor(config, multi_scale=multi_scale, shardings=shardings)
    num_classes = config["model"]["num_classes"]
    together = shardings is not None and shardings.mesh.is_multi_process

    def run(variables: Variables) -> dict[str, Any]:
        if not len(source):
            name = getattr(source, "name", type(source).__name__)
            raise InputError(
                f"the source {name!r} has no examples; check its directory and its split"
            )
        examples = grain.MapDataset.source(source)
        if not together:
            examples = examples[jax.process_index() :: jax.process_count()]
        infer = predictor(variables)
        total = np.zeros((num_classes, num_classes), np.int64)
        for example in progress(
            examples.to_iter_dataset(_READ_OPTIONS), len(examples), "evaluating"
        ):
            check_example(example, num_classes)
            predictions = jnp.argmax(infer(example["image"]), axis=-1)
            total += np.asarray(_confusion_matrix(example["label"], predictions, num_classes))
        confusion = total if together else sum_over_processes(total)
        return {
            **summarize(confusion),
            "images": len(source),
            "protocol": predictor.protocol,
        }

    return run


def report(summary: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Reports an evaluation, as text and as plain values.

    Args:
      summary: The result of the function that ``evaluator`` returns.
      config: Config of the experiment.

    Returns:
      A Markdown table in percent, and a dict for JSON. In the dict the metrics are fractions of
      one, and None where they are undefined.
    """
    dataset = get_dataset(config["data"]["name"])
    values = {
        "dataset": dataset.name,
        "images": summary["images"],
        "protocol": summary["protocol"],
        **{key: summary[key] for key in ("miou", "mean_accuracy", "overall_accuracy")},
        "classes": [
            {"name": name, "iou": _or_none(iou), "accuracy": _or_none(accuracy)}
            for name, iou, accuracy in zip(
                dataset.classes, summary["iou"], summary["accuracy"], strict=True
            )
        ],
    }
    return markdown_table(summary, dataset.classes), values


def _or_none(fraction: float) -> float | None:
    return None if np.isnan(fraction) else float(fraction)
