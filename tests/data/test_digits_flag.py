import hashlib
import json

import numpy as np
import pytest

from nonlocal_jax import data
from nonlocal_jax.data.datasets import digits_flag
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
        # All digits may be of one class.
        assert {0} < set(np.unique(example["label"])) <= {0, 1, 2}


def test_ids_are_unique(examples):
    ids = [example["id"] for example in examples["train"] + examples["val"]]
    assert len(set(ids)) == len(ids)


def test_labels_are_the_same_everywhere(examples):
    # Labels need only integers and OpenCV's bit-exact resize, so all machines draw the same ones.
    labels = {e["id"]: e["label"] for split in SPLITS for e in examples[split]}
    digest = hashlib.sha256(b"".join(labels[key].tobytes() for key in sorted(labels)))
    assert digest.hexdigest()[:16] == "8ccbfc0518bf19e3"


def test_metadata_names_the_classes(data_dir):
    metadata = json.loads(next(data_dir.glob("digits_flag/*/metadata.json")).read_text())
    dataset = data.get_dataset("digits_flag")
    assert tuple(metadata["classes"]) == dataset.classes
    assert tuple(map(tuple, metadata["palette"])) == dataset.palette
    assert metadata["ignore_index"] == 255


def test_the_flag_of_its_color_decides_a_digit():
    material = digits_flag.split_material(*digits_flag.load_material(), "val")
    seen = set()
    for i in range(100):
        rng = np.random.default_rng(i)
        image, label = digits_flag.draw_example(rng, *material)
        flags = (label == 0) & (image.max(-1) == 255)
        colors = np.unique(image[flags], axis=0)
        assert len(colors) == 2
        for color in colors:
            colored = (image == color).all(-1)
            rows, columns = np.nonzero(flags & colored)
            # The center of a disc is filled, and that of a ring is empty.
            middle = colored[(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2]
            classes = set(label[colored]) - {0}
            assert classes <= {1 if middle else 2}
            seen |= classes
    assert seen == {1, 2}


def test_discs_and_rings_are_equal_within_reach_of_the_rim():
    disc, ring = digits_flag._FLAGS[1], digits_flag._FLAGS[2]
    # The receptive field reaches 15 pixels, and the flag is at least MIN_DISTANCE pixels away.
    rim = 15 - digits_flag.MIN_DISTANCE + 1
    hole = disc & ~ring
    assert hole.any()
    assert not hole[:rim].any()
    np.testing.assert_array_equal(hole, np.rot90(hole))


def test_flags_have_the_minimal_distance_to_digits(layouts):
    for flags, corners in layouts:
        assert flags.shape == (2, 2)
        assert flags.min() >= 0
        assert flags.max() <= 64 - digits_flag.FLAG_SIZE
        for flag in flags:
            before = flag - (corners + digits_flag.DIGIT_SIZE - 1)
            after = corners - (flag + digits_flag.FLAG_SIZE - 1)
            distance = np.maximum(before, after).max(axis=1)
            assert distance.min() >= digits_flag.MIN_DISTANCE


def test_nothing_overlaps(layouts):
    for flags, corners in layouts:
        taken = np.zeros((64, 64), int)
        for squares, size in ((flags, digits_flag.FLAG_SIZE), (corners, digits_flag.DIGIT_SIZE)):
            for row, column in squares:
                taken[row : row + size, column : column + size] += 1
        assert taken.sum() == 2 * 15**2 + 4 * 16**2
        assert taken.max() == 1


def test_flags_and_digits_visit_all_corners(layouts):
    for squares in zip(*layouts, strict=True):
        quadrants = [tuple(corner >= 24) for corner in np.concatenate(squares)]
        shares = [quadrants.count((a, b)) for a in (False, True) for b in (False, True)]
        assert min(shares) > 0.15 * len(quadrants)


@pytest.mark.parametrize("split", SPLITS)
def test_shares_of_the_classes(examples, split):
    labels = np.stack([example["label"] for example in examples[split]])
    shares = np.bincount(labels.ravel(), minlength=3) / labels.size
    np.testing.assert_allclose(shares, (0.854, 0.073, 0.073), atol=0.01)


def test_splits_share_no_digit_and_no_patch():
    digits, photos = digits_flag.load_material()
    train, val = (digits_flag.split_material(digits, photos, split) for split in SPLITS)
    np.testing.assert_array_equal(np.concatenate([train[0], val[0]]), digits)
    for whole, left, right in zip(photos, train[1], val[1], strict=True):
        np.testing.assert_array_equal(np.concatenate([left, right], 1), whole)
    assert len(train[0]) == 1347


def test_a_missing_scikit_learn_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        digits_flag.load_material()
