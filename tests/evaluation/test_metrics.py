"""The metrics, against numbers computed by hand and against a slow loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nonlocal_jax.errors import InputError
from nonlocal_jax.evaluation import metrics

LABELS = np.array([[0, 0, 1], [1, 255, 1]], np.uint8)
PREDICTIONS = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)


def test_confusion_matrix_counts_true_and_predicted_classes_without_ignored_pixels():
    confusion = metrics.confusion_matrix(LABELS, PREDICTIONS, 3, 255)
    np.testing.assert_array_equal(confusion, [[1, 1, 0], [1, 2, 0], [0, 0, 0]])
    assert confusion.dtype == jnp.int32


@settings(deadline=None, max_examples=30)
@given(
    labels=hnp.arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 2, 3, 255])),
    predictions=hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 3)),
)
def test_confusion_matrix_is_the_slow_loop(labels, predictions):
    expected = np.zeros((4, 4), int)
    for label, prediction in zip(labels.flat, predictions.flat, strict=True):
        if label != 255:
            expected[label, prediction] += 1
    count = jax.jit(metrics.confusion_matrix, static_argnums=(2, 3))
    np.testing.assert_array_equal(count(labels, predictions, 4, 255), expected)
    np.testing.assert_array_equal(metrics.confusion_matrix(labels, predictions, 4, 255), expected)


def test_a_class_may_be_the_ignored_label():
    confusion = metrics.confusion_matrix(np.array([0, 1]), np.array([1, 1]), 2, ignore_index=0)
    np.testing.assert_array_equal(confusion, [[0, 0], [0, 1]])


def test_wrong_labels_and_shapes_are_refused():
    with pytest.raises(InputError, match=r"labels contain 3; use .* 0 to 2, or 255"):
        metrics.confusion_matrix(np.array([0, 3]), np.zeros(2, int), 3, 255)
    with pytest.raises(InputError, match=r"\(2,\) and predictions \(3,\); use the same shape"):
        metrics.confusion_matrix(np.zeros(2, int), np.zeros(3, int), 3, 255)
    with pytest.raises(InputError, match=r"the shape \(2, 3\); use \[C, C\]"):
        metrics.summarize(np.ones((2, 3)))


def test_labels_out_of_range_are_never_counted_under_jit():
    count = jax.jit(metrics.confusion_matrix, static_argnums=(2, 3))
    labels = np.array([-1, 3, 4, 1], np.int32)
    np.testing.assert_array_equal(
        count(labels, np.array([0, 1, 2, 2]), 3, 255), [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
    )


def test_summary_by_hand():
    # IoU 1/3 and 2/4, accuracy 1/2 and 2/3; class 2 is neither present nor predicted.
    summary = metrics.summarize(np.array([[1, 1, 0], [1, 2, 0], [0, 0, 0]]))
    np.testing.assert_allclose(summary["iou"], [1 / 3, 2 / 4, np.nan])
    np.testing.assert_allclose(summary["accuracy"], [1 / 2, 2 / 3, np.nan])
    assert summary["miou"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert summary["mean_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert summary["overall_accuracy"] == pytest.approx(3 / 5)


def test_a_class_that_is_only_predicted_counts_in_the_iou_only():
    summary = metrics.summarize(np.array([[3, 1], [0, 0]]))
    np.testing.assert_allclose(summary["iou"], [3 / 4, 0])
    np.testing.assert_allclose(summary["accuracy"], [3 / 4, np.nan])
    assert summary["miou"] == pytest.approx(3 / 8)
    assert summary["mean_accuracy"] == pytest.approx(3 / 4)


def test_counts_beyond_32_bits():
    summary = metrics.summarize(np.array([[3 * 2**40, 2**40], [0, 2**40]], np.int64))
    assert summary["overall_accuracy"] == pytest.approx(4 / 5)
    np.testing.assert_allclose(summary["iou"], [3 / 4, 1 / 2])


def test_a_confusion_matrix_without_pixels_is_refused():
    with pytest.raises(InputError, match="no pixel has a label"):
        metrics.summarize(np.zeros((2, 2), np.int64))


def test_markdown_table_rounds_to_two_decimals_and_marks_absent_classes():
    summary = metrics.summarize(np.array([[1, 1, 0], [1, 2, 0], [0, 0, 0]]))
    assert metrics.markdown_table(summary, ["cat", "a dog", "bird"]).splitlines() == [
        "| class          | IoU % | accuracy % |",
        "|----------------|------:|-----------:|",
        "| cat            | 33.33 |      50.00 |",
        "| a dog          | 50.00 |      66.67 |",
        "| bird           |     - |          - |",
        "| **mean**       | 41.67 |      58.33 |",
        "| **all pixels** |       |      60.00 |",
    ]


def test_one_process_needs_no_sum():
    confusion = np.array([[2**40]])
    assert metrics.sum_over_processes(confusion) is confusion
