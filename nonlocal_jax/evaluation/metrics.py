"""Segmentation metrics from one integer confusion matrix."""

from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from nonlocal_jax.errors import InputError


def check_labels(labels: np.ndarray, num_classes: int, ignore_index: int, where: str = "") -> None:
    """Requires every label to be a class or ``ignore_index``.

    A wrong label is invisible in the metrics, so it is refused and never dropped.

    Raises:
      InputError: naming the labels that are neither.
    """
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= num_classes))
    if wrong.any():
        values = np.unique(labels[wrong])
        listed = ", ".join(map(str, values[:10])) + (", …" if len(values) > 10 else "")
        raise InputError(
            f"labels{where and f' of {where}'} must be 0 to {num_classes - 1} or {ignore_index} "
            f"(ignored); found {listed}. Were they converted to the classes of this dataset?"
        )


def confusion_matrix(
    labels: jax.Array, predictions: jax.Array, num_classes: int, ignore_index: int
) -> jax.Array:
    """Counts the pixels of every pair of true and predicted class.

    Works under ``jit`` with ``num_classes`` static. One call counts up to 2**31 - 1 pixels; sum
    several calls in int64 on the host.

    Args:
      labels: integers, of any shape.
      predictions: integers in [0, num_classes), of the same shape.
      num_classes: C.
      ignore_index: label of the pixels that are left out.

    Returns:
      int32 ``[C, C]``: rows are true classes, columns predicted ones.

    Raises:
      InputError: a label is out of range. Only NumPy labels are checked, for values are unknown
        under ``jit``, where such pixels are left out: call ``check_labels`` first.
    """
    chex.assert_equal_shape(
        [labels, predictions], custom_message="labels and predictions must have one shape"
    )
    if isinstance(labels, np.ndarray):
        check_labels(labels, num_classes, ignore_index)
    labels = jnp.asarray(labels, jnp.int32).ravel()
    predictions = jnp.asarray(predictions, jnp.int32).ravel()
    counted = (labels != ignore_index) & (labels >= 0) & (labels < num_classes)
    # bincount drops what lies beyond its length.
    cells = jnp.where(counted, labels * num_classes + predictions, num_classes**2)
    counts = jnp.bincount(cells, length=num_classes**2)
    return counts.astype(jnp.int32).reshape(num_classes, num_classes)


def sum_over_processes(confusion: np.ndarray) -> np.ndarray:
    """The sum of every process's int64 matrix, on every process; all of them must call this."""
    if jax.process_count() == 1:
        return confusion
    # Arrays that travel between processes have no 64-bit integers by default: send the halves.
    halves = np.ascontiguousarray(confusion, np.int64).view(np.uint32)
    gathered = np.ascontiguousarray(multihost_utils.process_allgather(halves))
    return gathered.view(np.int64).sum(axis=0)


def summarize(confusion: np.ndarray) -> dict[str, Any]:
    """The metrics of a confusion matrix, as fractions of one.

      IoU_c = n_cc / (sum_j n_cj + sum_j n_jc - n_cc)      accuracy_c = n_cc / sum_j n_cj

    for n_ij pixels of class i predicted as j. The means are over classes, leaving out those that
    are not defined: IoU where a class is neither present nor predicted, accuracy where it is not
    present. The overall accuracy is sum_c n_cc / sum_ij n_ij.

    Args:
      confusion: ``[C, C]``, summed over the whole dataset.

    Returns:
      ``miou``, ``mean_accuracy`` and ``overall_accuracy`` as floats; ``iou`` and ``accuracy`` as
      ``[C]`` with NaN where a class has none.

    Raises:
      InputError: no pixel was counted.
    """
    chex.assert_shape(confusion, (len(confusion), len(confusion)))
    confusion = np.asarray(confusion, np.int64)
    if not confusion.any():
        raise InputError("no pixel has a label, so there is nothing to measure")
    correct = np.diag(confusion)
    present = confusion.sum(axis=1)
    union = present + confusion.sum(axis=0) - correct
    with np.errstate(invalid="ignore"):  # 0 / 0
        iou = correct / union
        accuracy = correct / present
    return {
        "miou": float(np.nanmean(iou)),
        "mean_accuracy": float(np.nanmean(accuracy)),
        "overall_accuracy": float(correct.sum() / confusion.sum()),
        "iou": iou,
        "accuracy": accuracy,
    }


def _percent(fraction: float) -> str:
    return "-" if np.isnan(fraction) else f"{100 * fraction:.2f}"


def markdown_table(summary: Mapping[str, Any], names: Sequence[str]) -> str:
    """The per-class and mean metrics in percent, as a Markdown table that also reads as text."""
    rows = [
        (name, _percent(iou), _percent(accuracy))
        for name, iou, accuracy in zip(names, summary["iou"], summary["accuracy"], strict=True)
    ]
    rows.append(("**mean**", _percent(summary["miou"]), _percent(summary["mean_accuracy"])))
    rows.append(("**all pixels**", "", _percent(summary["overall_accuracy"])))
    header = ("class", "IoU %", "accuracy %")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells):
        first, *numbers = (
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *numbers]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2)] + ["-" * (w + 1) + ":" for w in widths[1:]]) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])
