import numpy as np
import pytest

from nonlocal_jax import data
from nonlocal_jax.errors import InputError


def example(**changes):
    fields = {
        "image": np.zeros((4, 6, 3), np.uint8),
        "label": np.array([[0, 1, 2, 18, 255, 0]] * 4, np.uint8),
        "id": "street_7",
    }
    return fields | changes


def test_a_valid_example_passes():
    data.check_example(example(), 19)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"label": np.full((4, 6), 34, np.uint8)},
            "contain 34; use .* 0 to 18, or 255",
        ),
        (
            {"label": np.array([[0, 19, 33, 255]] * 4, np.uint8)},
            r"use uint8 \(4, 6\), the size of its image",
        ),
        ({"label": np.array([[0, 19, 33, 255, 1, 1]] * 4, np.uint8)}, "contain 19, 33;"),
        ({"label": np.zeros((4, 6), np.uint16)}, "uint16"),
        ({"label": np.zeros((4, 6, 3), np.uint8)}, r"\(4, 6, 3\)"),
        ({"image": np.zeros((4, 6, 3), np.float32)}, "float32"),
        ({"image": np.zeros((4, 6), np.uint8)}, r"use uint8 RGB \[H, W, 3\]"),
        ({"image": np.zeros((4, 6, 4), np.uint8)}, r"\(4, 6, 4\)"),
    ],
)
def test_an_invalid_example_is_refused_by_its_id(changes, message):
    with pytest.raises(InputError, match=message) as error:
        data.check_example(example(**changes), 19)
    assert "street_7" in str(error.value)


def test_missing_fields_are_named():
    with pytest.raises(InputError, match=r"lacks label, id \(it has image\); add each missing"):
        data.check_example({"image": example()["image"]}, 19)


@pytest.mark.parametrize("label", [3, 254, -1])
def test_labels_out_of_range_are_refused(label):
    labels = np.array([[0, label, 255]], np.int16)
    with pytest.raises(InputError, match=rf"contain {label}; use .* 0 to 2, or 255"):
        data.check_labels(labels, 3)


def test_at_most_ten_wrong_labels_are_listed():
    with pytest.raises(InputError, match=r"contain 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, \.\.\.; use"):
        data.check_labels(np.arange(50), 2)
