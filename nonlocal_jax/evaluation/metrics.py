"""Segmentation metrics, computed from one confusion matrix of integers."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from nonlocal_jax.data import IGNORE_INDEX, check_labels
from nonlocal_jax.errors import InputError


def confusion_matrix(
    labels: jax.Array, predictions: jax.Array, num_classes: int, ignore_index: int = IGNORE_INDEX
) -> jax.Array:
    """Counts the pixels for every pair of a true and a predicted class.

    Works under ``jit`` with static ``num_classes``. One call counts up to 2**31 - 1 pixels. Sum
    several calls in int64 on the host.

    Args:
      labels: Integers, of any shape.
      predictions: Integers in [0, num_classes), of the same shape.
      num_classes: The number of classes C.
      ignore_index: Label of the pixels that are not counted.

    Returns:
      int32 ``[C, C]``. Rows are true classes, columns are predicted classes.

    Raises:
      InputError: The shapes differ, or a label is out of range. Only NumPy labels are checked: the
        values are unknown under ``jit``, where wrong labels are not counted. Call
        ``data.check_labels`` before.
    """
    if labels.shape != predictions.shape:
        raise InputError(
            f"labels have the shape {labels.shape} and predictions {predictions.shape}; "
            "use the same shape"
        )
    if isinstance(labels, np.ndarray):
        check_labels(labels, num_classes, ignore_index)
    labels = jnp.asarray(labels, jnp.int32).ravel()
    predictions = jnp.asarray(predictions, jnp.int32).ravel()
    counted = (labels != ignore_index) & (labels >= 0) & (labels < num_classes)
    # bincount ignores values beyond its length.
    cells = jnp.where(counted, labels * num_classes + predictions, num_classes**2)
    counts = jnp.bincount(cells, length=num_classes**2)
    return counts.astype(jnp.int32).reshape(num_classes, num_classes)


def sum_over_processes(confusion: np.ndarray) -> np.ndarray:
    """Sums the int64 matrices of all processes. Every process must call it and receives the sum."""
    if jax.process_count() == 1:
        return confusion
    # JAX arrays are 32-bit by default, so each number is sent as two halves.
    halves = np.ascontiguousarray(confusion, np.int64).view(np.uint32)
    gathered = np.ascontiguousarray(multihost_utils.process_allgather(halves))
    return gathered.view(np.int64).sum(axis=0)


def summarize(confusion: np.ndarray) -> dict[str, Any]:
    """Computes the metrics of a confusion matrix, as fractions of one.

    With n_ij the number of pixels of class i that are predicted as class j::

        IoU_c = n_cc / (sum_j n_cj + sum_j n_jc - n_cc)
        accuracy_c = n_cc / sum_j n_cj
        overall accuracy = sum_c n_cc / sum_ij n_ij

    The IoU of a class that is neither present nor predicted is undefined, and so is the accuracy of
    a class that is not present. The means are over the classes where the metric is defined.

    Args:
      confusion: The matrix ``[C, C]``, summed over the whole dataset.

    Returns:
      ``miou``, ``mean_accuracy`` and ``overall_accuracy`` as floats. ``iou`` and ``accuracy`` as
      ``[C]``, NaN where they are undefined.

    Raises:
      InputError: The matrix is not square, or no pixel was counted.
    """
    confusion = np.asarray(confusion, np.int64)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise InputError(f"the confusion matrix has the shape {confusion.shape}; use [C, C]")
    if not confusion.any():
        raise InputError(
            "no pixel has a label, so no metric is defined; use labels that are not all ignored"
        )
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


def gather_shares(share: np.ndarray, number: int) -> np.ndarray:
    """Returns the rows of all processes in order. Every process must call it and receives them.

    Args:
      share: The float64 rows ``index, index + count, index + 2 count, ...`` of ``number``, where
        ``index`` is that of the process and ``count`` the number of processes.
      number: The number of rows of all processes together.
    """
    count = jax.process_count()
    if count == 1:
        return share
    padded = np.zeros((-(-number // count), *share.shape[1:]))
    padded[: len(share)] = share
    # JAX arrays are 32-bit by default, so each number is sent as two halves.
    halves = padded[..., None].view(np.uint32)
    gathered = np.ascontiguousarray(multihost_utils.process_allgather(halves)).view(np.float64)
    return np.swapaxes(gathered[..., 0], 0, 1).reshape(-1, *share.shape[1:])[:number]


def or_none(fraction: float) -> float | None:
    """Returns a value for JSON, which has no NaN."""
    return None if np.isnan(fraction) else float(fraction)


def percent(fraction: float) -> str:
    """Formats a fraction of one as text."""
    return "-" if np.isnan(fraction) else f"{100 * fraction:.2f}"


def markdown_table(summary: Mapping[str, Any], names: Sequence[str]) -> str:
    """Formats the metrics of ``summarize`` in percent, as an aligned Markdown table.

    Args:
      summary: The result of ``summarize``.
      names: Names of the classes.
    """
    rows = [
        (name, percent(iou), percent(accuracy))
        for name, iou, accuracy in zip(names, summary["iou"], summary["accuracy"], strict=True)
    ]
    rows.append(("**mean**", percent(summary["miou"]), percent(summary["mean_accuracy"])))
    rows.append(("**all pixels**", "", percent(summary["overall_accuracy"])))
    header = ("class", "IoU %", "accuracy %")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(name: str, *numbers: str) -> str:
        cells = [name.ljust(widths[0])]
        cells += [number.rjust(w) for number, w in zip(numbers, widths[1:], strict=True)]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2)] + ["-" * (w + 1) + ":" for w in widths[1:]]) + "|"
    return "\n".join([line(*header), rule, *(line(*row) for row in rows)])
