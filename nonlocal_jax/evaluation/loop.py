"""Measuring a network on a dataset."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from nonlocal_jax._progress import progress
from nonlocal_jax.data import IGNORE_INDEX
from nonlocal_jax.errors import InputError
from nonlocal_jax.evaluation.inference import (
    ApplyFn,
    compile_inference,
    inference_mesh,
    inference_protocol,
    multi_scale_inference,
)
from nonlocal_jax.evaluation.metrics import (
    check_labels,
    confusion_matrix,
    sum_over_processes,
    summarize,
)
from nonlocal_jax.models import create_model

# Examples are read and decoded by this many threads while the device works.
_READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)

_confusion_matrix = jax.jit(confusion_matrix, static_argnums=(2, 3))


def evaluate(
    apply_fn: ApplyFn,
    source: Sequence[Mapping[str, Any]],
    *,
    num_classes: int,
    ignore_index: int,
    protocol: Mapping[str, Any],
) -> dict[str, Any]:
    """The metrics of a network on all examples of a source.

    Images pass one at a time, as in the published evaluations, and fill one confusion matrix at
    the size of the labels. With several processes each takes its share of the examples, on its own
    devices, and the matrices are summed once, at the end.

    Args:
      apply_fn: see ``nonlocal_jax.evaluation.inference``.
      source: random access to ``{"image": uint8 [H, W, 3], "label": integer [H, W], "id"}``.
      num_classes: C.
      ignore_index: label of the pixels that are left out.
      protocol: keyword arguments of ``multi_scale_inference``, see ``inference_protocol``.

    Returns:
      See ``summarize``.

    Raises:
      InputError: there is no example, or a label does not fit its image or the classes.
    """
    if not len(source):
        raise InputError("the dataset has no examples to evaluate")
    share = grain.MapDataset.source(source)[jax.process_index() :: jax.process_count()]
    total = np.zeros((num_classes, num_classes), np.int64)
    for example in progress(share.to_iter_dataset(_READ_OPTIONS), len(share), "evaluating"):
        image, labels = example["image"], example["label"]
        if labels.shape != image.shape[:2]:
            raise InputError(
                f"the label of {example['id']} has shape {labels.shape}, "
                f"its image {image.shape[:2]}"
            )
        check_labels(labels, num_classes, ignore_index, where=str(example["id"]))
        probabilities = multi_scale_inference(apply_fn, image, **protocol)
        if probabilities.shape[-1] != num_classes:
            raise InputError(
                f"the network tells {probabilities.shape[-1]} classes apart, "
                f"the dataset has {num_classes}"
            )
        predictions = jnp.argmax(probabilities, axis=-1)
        total += np.asarray(
            _confusion_matrix(jnp.asarray(labels), predictions, num_classes, ignore_index)
        )
    return summarize(sum_over_processes(total))


def evaluator(
    config: Mapping[str, Any],
    source: Sequence[Mapping[str, Any]],
    *,
    multi_scale: bool = False,
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """``evaluate`` by an experiment's protocol, as a function of the variables alone.

    The network is compiled once for every size of image, not once for every call.
    """
    inference = compile_inference(create_model(config["model"]), inference_mesh(config))
    protocol = inference_protocol(config, multi_scale=multi_scale)

    def run(variables: Mapping[str, Any]) -> dict[str, Any]:
        return evaluate(
            inference(variables),
            source,
            num_classes=config["model"]["num_classes"],
            ignore_index=IGNORE_INDEX,
            protocol=protocol,
        )

    return run
