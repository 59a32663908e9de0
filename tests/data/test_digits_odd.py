"""The clips of ``digits_odd``."""

import hashlib

import numpy as np
import pytest

from nonlocal_jax import data

SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def sources(data_dir):
    return {split: data.load_source("digits_odd", split, data_dir) for split in SPLITS}


@pytest.fixture(scope="module")
def clips(sources):
    """A few clips and their classes."""
    examples = [sources["val"][i] for i in range(64)]
    frames = np.stack([example["video"].read(range(8)) for example in examples])
    return frames, np.array([example["label"] for example in examples])


def color_of(frame):
    """The index of the color in a frame, or -1: the photograph is dark."""
    pixel = frame.reshape(-1, 3)[frame.sum(-1).argmax()].astype(int)
    if pixel.max() < 128:
        return -1
    palette = np.array(data.get_dataset("digits_odd").palette)
    return int(np.abs(palette - pixel).sum(-1).argmin())


def test_examples_are_videos_with_a_class(sources):
    assert {split: len(source) for split, source in sources.items()} == {"train": 2048, "val": 512}
    ids = []
    for source in sources.values():
        for index in (0, len(source) - 1):
            example = source[index]
            video = example["video"]
            assert (video.num_frames, *video.size) == (8, 32, 32)
            assert video.read([3]).dtype == np.uint8
            assert isinstance(example["label"], int)
            assert [example[key] for key in ("num_frames", "height", "width")] == [8, 32, 32]
            ids.append(example["id"])
    assert len(set(ids)) == 4


def test_the_class_is_the_color_that_occurs_once(clips):
    seen = set()
    for frames, label in zip(*clips, strict=True):
        colors = [color_of(frame) for frame in frames]
        assert colors[2] == colors[5] == -1
        first, second, third = colors[:2], colors[3:5], colors[6:]
        for pair in (first, second, third):
            assert pair[0] == pair[1] >= 0
        shown = [first[0], second[0], third[0]]
        assert shown.count(label) == 1
        assert len(set(shown)) == 2
        seen.add((label, shown.index(label)))
    assert len(seen) == 4 * 3  # every class, first, second and third


def test_classes_are_balanced(sources):
    labels = [example["label"] for example in map(sources["val"].__getitem__, range(512))]
    shares = np.bincount(labels) / len(labels)
    np.testing.assert_allclose(shares, 0.25, atol=0.05)
    assert data.get_dataset("digits_odd").classes == ("red", "green", "blue", "white")


def test_a_frame_says_nothing_about_the_class(clips):
    # The color of the first digit is that of the class in a third of the clips, as chance has it.
    frames, labels = clips
    first = np.array([color_of(clip[0]) for clip in frames])
    assert np.mean(first == labels) == pytest.approx(1 / 3, abs=0.15)


def test_labels_are_the_same_everywhere(clips):
    assert (
        hashlib.sha256(clips[1].astype(np.uint8).tobytes()).hexdigest()[:16] == "fc0bd241e33935a8"
    )


def test_digits_visit_all_corners(clips):
    inked = (clips[0].max(-1) > 128).any((0, 1))
    for rows in (slice(4), slice(-4, None)):
        for columns in (slice(6), slice(-6, None)):
            assert inked[rows, columns].any()
