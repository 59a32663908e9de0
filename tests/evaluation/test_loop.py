"""Evaluation over a source of examples."""

import jax.numpy as jnp
import numpy as np
import pytest

from nonlocal_jax.errors import InputError
from nonlocal_jax.evaluation import evaluate

PROTOCOL = {"base_size": (8, 6), "ratios": (1.0,), "flip": False}


def read_class(images):
    """Logits for what the first channel says: black, gray and white are classes 0, 1, 2."""
    gray = images[..., 0] * 58.395 + 123.675
    return -jnp.abs(gray[..., None] - jnp.array([0.0, 128.0, 255.0]))


def example(labels, shown=None):
    labels = np.array(labels, np.uint8)
    gray = np.array([0, 128, 255, 255], np.uint8)[labels if shown is None else shown]
    return {"image": np.repeat(gray[..., None], 3, -1), "label": labels, "id": "street"}


def run(source, num_classes=3):
    return evaluate(
        read_class, source, num_classes=num_classes, ignore_index=255, protocol=PROTOCOL
    )


def test_one_confusion_matrix_over_images_of_several_sizes():
    source = [
        example(np.full((6, 8), 1)),
        example(np.full((12, 16), 255), shown=np.full((12, 16), 2)),
        example(np.full((3, 4), 0), shown=np.full((3, 4), 1)),
    ]
    summary = run(source)
    # 48 pixels right, 12 wrong; the mean over images would be another number
    assert summary["overall_accuracy"] == pytest.approx(48 / 60)
    np.testing.assert_allclose(summary["iou"], [0, 48 / 60, np.nan])
    assert summary["miou"] == pytest.approx(0.4)


def test_examples_are_not_read_without_bound():
    read = []

    class Source:
        def __len__(self):
            return 40

        def __getitem__(self, index):
            read.append(index)
            return example(np.full((6, 8), 3 if index == 0 else 1))

    with pytest.raises(InputError):
        evaluate(read_class, Source(), num_classes=3, ignore_index=255, protocol=PROTOCOL)
    assert len(read) < 40


def test_labels_out_of_range_are_refused_by_name():
    with pytest.raises(InputError, match=r"labels of street must be 0 to 1 or 255.*found 2"):
        run([example(np.full((6, 8), 2))], num_classes=2)


def test_another_number_of_classes_is_refused():
    with pytest.raises(InputError, match="tells 3 classes apart, the dataset has 5"):
        run([example(np.full((6, 8), 2))], num_classes=5)


def test_a_label_of_another_size_is_refused():
    bad = {**example(np.full((6, 8), 1)), "label": np.zeros((8, 6), np.uint8)}
    with pytest.raises(InputError, match=r"\(8, 6\)"):
        run([bad])


def test_an_empty_source_is_refused():
    with pytest.raises(InputError, match="no examples"):
        run([])


def test_errors_of_the_source_arrive_as_they_are():
    class Source:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            raise InputError(f"example {index} is damaged")

    with pytest.raises(InputError, match=r"example \d is damaged"):
        run(Source())
