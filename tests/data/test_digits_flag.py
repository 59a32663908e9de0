import hashlib
import json

import numpy as np
import pytest

from nonlocal_jax import data
from nonlocal_jax.data import digits_flag
from nonlocal_jax.errors import InputError

SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def examples(data_dir):
    return {split: list(data.load_source("digits_flag", split, data_dir)) for split in SPLITS}


@pytest.fixture(scope="module")
def layouts():
    return [digits_flag.draw_layout(np.random.default_rng(i)) for i in range(300)]


def test_number_size_and_type(examples):
    assert {split: len(examples[split]) for split in SPLITS} == {"train": 2048, "val": 256}
    for example in examples["train"] + examples["val"]:
        assert example["image"].shape == (64, 64, 3)
        assert example["label"].shape == (64, 64)
        assert example["image"].dtype == example["label"].dtype == np.uint8
        assert set(np.unique(example["label"])) == {0, 1, 2}


def test_ids_are_unique(examples):
    ids = [example["id"] for example in examples["train"] + examples["val"]]
    assert len(set(ids)) == len(ids)


def test_labels_are_the_same_everywhere(examples):
    # Integers and OpenCV's bit-exact resize alone, so every machine draws these.
    labels = {e["id"]: e["label"] for split in SPLITS for e in examples[split]}
    digest = hashlib.sha256(b"".join(labels[key].tobytes() for key in sorted(labels)))
    assert digest.hexdigest()[:16] == "380735a806fcc93e"


def test_metadata_tells_what_the_labels_mean(data_dir):
    metadata = json.loads(next(data_dir.glob("digits_flag/*/metadata.json")).read_text())
    info = data.get_info("digits_flag")
    assert tuple(metadata["classes"]) == info.classes
    assert tuple(map(tuple, metadata["palette"])) == info.palette
    assert metadata["ignore_index"] == 255


def test_the_colour_of_the_flag_decides():
    """A digit is of class 1 exactly if it has the colour of the largest solid spot of class 0."""
    material = digits_flag.split_material(*digits_flag.load_material(), "val")
    for i in range(100):
        image, label = digits_flag.draw_example(np.random.default_rng(i), *material)
        flag = brightest(image[label == 0])
        assert (brightest(image[label == 1]) == flag).all()
        assert (brightest(image[label == 2]) != flag).any()
        # All solid pixels of one class share one colour.
        for class_ in (1, 2):
            pixels = image[label == class_]
            assert (pixels == brightest(pixels)).all(-1).mean() > 0.3


def brightest(pixels):
    """The tint among pixels: it has 255 in some channel, the photograph has not."""
    tints = pixels[pixels.max(-1) == 255]
    values, counts = np.unique(tints, axis=0, return_counts=True)
    return values[counts.argmax()]


def test_the_flag_is_out_of_sight(layouts):
    size, radius = digits_flag.DIGIT_SIZE, digits_flag.FLAG_RADIUS
    for flag, corners in layouts:
        assert flag.min() >= radius
        assert flag.max() < 64 - radius
        for corner in corners:
            before = (flag - radius) - (corner + size - 1)
            after = corner - (flag + radius)
            assert np.maximum(before, after).max() >= digits_flag.MIN_DISTANCE


def test_digits_do_not_overlap(layouts):
    for _, corners in layouts:
        assert len(corners) == 6
        taken = np.zeros((64, 64), int)
        for row, column in corners:
            taken[row : row + 16, column : column + 16] += 1
        assert taken.sum() == 6 * 16 * 16
        assert taken.max() == 1


def test_the_flag_visits_all_corners(layouts):
    quadrants = [tuple(flag >= 32) for flag, _ in layouts]
    assert min(quadrants.count((a, b)) for a in (False, True) for b in (False, True)) > 50


@pytest.mark.parametrize("split", SPLITS)
def test_shares_of_the_classes(examples, split):
    labels = np.stack([example["label"] for example in examples[split]])
    shares = np.bincount(labels.ravel(), minlength=3) / labels.size
    # Four of six digits have the flag's colour in the mean.
    np.testing.assert_allclose(shares, (0.78, 0.145, 0.075), atol=0.01)


def test_splits_share_no_digit_and_no_patch():
    digits, photos = digits_flag.load_material()
    train, val = (digits_flag.split_material(digits, photos, split) for split in SPLITS)
    np.testing.assert_array_equal(np.concatenate([train[0], val[0]]), digits)
    for whole, left, right in zip(photos, train[1], val[1], strict=True):
        np.testing.assert_array_equal(np.concatenate([left, right], 1), whole)
    assert len(train[0]) == 1347


def test_scikit_learn_is_asked_for(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        digits_flag.load_material()
