"""Evaluation of a segmentation network on a dataset."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import jax
import numpy as np

from nonlocal_jax._interrupt import Interrupted, check_interrupted, until_stopped
from nonlocal_jax._progress import progress, report_compilation
from nonlocal_jax.data import Source, check_example
from nonlocal_jax.evaluation._devices import shardings_or_local
from nonlocal_jax.evaluation._source import dataset_classes, examples_of_process
from nonlocal_jax.evaluation.metrics import (
    markdown_table,
    or_none,
    sum_over_processes,
    summarize,
)
from nonlocal_jax.evaluation.predictor import Predictor, Variables
from nonlocal_jax.sharding import Shardings

# This many threads read and decode examples while the device computes.
_READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


def evaluator(
    config: Mapping[str, Any],
    source: Source,
    *,
    multi_scale: bool = False,
    shardings: Shardings | None = None,
) -> Callable[[Variables], dict[str, Any]]:
    """Returns a function that measures variables on all examples of a source.

    As in the published evaluations, one confusion matrix at the size of the labels counts all
    pixels. Every image counts once, on any number of devices and processes. Images of similar sizes
    share a batch, one for each group of ``mesh.context`` devices. The network is compiled for a few
    sizes, see ``Predictor``, and not again in later calls.

    If the mesh of ``shardings`` spans several processes, they evaluate every batch together.
    Otherwise each process evaluates its share of the examples, and the confusion matrices are
    summed at the end.

    Args:
      config: Config of the experiment, see ``Predictor``.
      source: The examples, see ``nonlocal_jax.data.Source``.
      multi_scale: Whether to use all scales of the config and its flip.
      shardings: Where the variables and images are placed, see ``Predictor``. Default: on all
        devices of this process.

    Returns:
      ``run(variables)``. It returns the metrics of ``summarize``, the ``confusion`` matrix, the
      number of ``images``, the ``protocol``, and the names of the ``dataset`` and of its
      ``classes``, see ``dataset_classes``. The function raises an ``InputError`` if there are no
      examples, or if one of them is invalid.

    Raises:
      InputError: The source has no random access, its dataset has another number of classes than
        the model, or ``shardings`` is something else.
    """
    placed = shardings_or_local(shardings, config["mesh"]["context"])
    predictor = Predictor(config, multi_scale=multi_scale, shardings=placed)
    together = shardings is not None and shardings.mesh.is_multi_process
    num_classes = config["model"]["num_classes"]
    name, classes = dataset_classes(source, config)
    compiled = False

    def run(variables: Variables) -> dict[str, Any]:
        nonlocal compiled
        examples = examples_of_process(source, together=together)
        if not compiled:
            report_compilation("the network, for a few sizes of images")
        compiled = True

        def images_and_labels() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            read = examples.to_iter_dataset(_READ_OPTIONS)
            read = progress(read, len(examples), "evaluating")
            count = 0
            for example in until_stopped(read, together=together):
                check_example(example, num_classes)
                yield example["image"], np.asarray(example["label"])
                count += 1
            if count < len(examples):
                raise Interrupted

        total = np.zeros((num_classes, num_classes), np.int64)
        try:
            for confusion in predictor.confusion_matrices(variables)(images_and_labels()):
                total += confusion
        except Interrupted:
            if jax.process_count() == 1:
                raise
            # The other processes wait for this one below.
        confusion = total if together else sum_over_processes(total)
        check_interrupted()
        return {
            **summarize(confusion),
            "confusion": confusion,
            "images": len(source),
            "protocol": predictor.protocol,
            "dataset": name,
            "classes": classes,
        }

    return run


def report(summary: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Reports an evaluation, as text and as plain values.

    Args:
      summary: The result of the function that ``evaluator`` returns.

    Returns:
      A Markdown table in percent, and a dict for JSON. In the dict the metrics are fractions of
      one, and None where they are undefined.
    """
    values = {
        "dataset": summary["dataset"],
        "images": summary["images"],
        "protocol": summary["protocol"],
        **{key: summary[key] for key in ("miou", "mean_accuracy", "overall_accuracy")},
        "classes": [
            {"name": name, "iou": or_none(iou), "accuracy": or_none(accuracy)}
            for name, iou, accuracy in zip(
                summary["classes"], summary["iou"], summary["accuracy"], strict=True
            )
        ],
    }
    return markdown_table(summary, summary["classes"]), values
