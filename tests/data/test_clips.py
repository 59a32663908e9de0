"""Clips and views: which crops, and which labels."""

import itertools

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from nonlocal_jax import data
from nonlocal_jax.data import clips
from nonlocal_jax.errors import InputError
from tests.data import movies


def make_config(**leaves):
    config = ConfigDict(
        {
            "data": {
                "sampling": "clip",
                "frames": 8,
                "interval": 2,
                "short_side": (32, 40),
                "long_side": "floor",
                "crop": 24,
                "crop_scales": (),
                "crop_scale_gap": 1,
                "crop_positions": 5,
                "crop_area": (),
                "flip": 0.5,
            },
            "evaluation": {
                "clips": 10,
                "crops": 3,
                "starts": "wrap",
                "short_side": 36,
                "crop": 36,
            },
            "loss": {"kind": "softmax"},
            "model": {"num_classes": 5},
        }
    )
    for name, value in leaves.items():
        part, _, field = name.partition("__")
        config[part][field] = value
    return config


class Draws:
    """A generator that returns the given numbers, and keeps the bounds that were asked for."""

    def __init__(self, *values):
        self.values = list(values)
        self.bounds = []

    def integers(self, low, high=None, size=None):
        self.bounds.append((low, high, size))
        value = self.values.pop(0)
        return value if size is None else np.full(size, value)

    def random(self):
        return self.values.pop(0)


class Counted(data.FrameArray):
    """A video that keeps which frames were read."""

    def __init__(self, frames):
        super().__init__(frames)
        self.calls = []

    def read(self, indices):
        self.calls.append([*map(int, indices)])
        return super().read(indices)


def example(**fields):
    video = data.FrameArray(movies.frames(30, (48, 64)))
    return {"video": video, "label": 3, "id": "a", **fields}


# ---------------------------------------------------------------------------------------------
# Sizes and crops.


def test_the_longer_side_is_truncated_or_rounded():
    differences = set()
    for height, width, short in itertools.product((240, 256, 333), (241, 320, 455), (256, 287)):
        longer, shorter = max(height, width), min(height, width)
        sizes = {"floor": longer * short // shorter, "round": int(longer * short / shorter + 0.5)}
        for kind, long in sizes.items():
            expected = (short, long) if height <= width else (long, short)
            assert clips.resized_size((height, width), short, kind) == expected
        differences.add(sizes["round"] - sizes["floor"])
    assert differences == {0, 1}


def test_a_crop_at_a_random_place():
    options = make_config().data
    rng = Draws(8, 17)
    assert clips.draw_window((32, 42), options, rng) == (slice(8, 32), slice(17, 41))
    assert [bound for bound, *_ in rng.bounds] == [32 - 24 + 1, 42 - 24 + 1]
    with pytest.raises(InputError, match=r"crop=24 is larger than frames of 40x23.*crop=23"):
        clips.draw_window((23, 40), options, rng)


@pytest.mark.parametrize("gap", [0, 1])
def test_the_crops_of_several_scales(gap):
    leaves = {"data__crop": 224, "data__crop_scales": (1, 0.875, 0.66), "data__crop_scale_gap": gap}
    options = make_config(**leaves, data__crop_positions=13).data
    sides = (256, 224, 168)
    pairs = [(h, w) for h, w in itertools.product(sides, sides)]
    pairs = [p for p in pairs if abs(sides.index(p[0]) - sides.index(p[1])) <= gap]
    quarters = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2)]
    quarters += [(1, 1), (1, 3), (3, 1), (3, 3)]
    for i, (height, width) in enumerate(pairs):
        for j, (down, right) in enumerate(quarters):
            rng = Draws(i, j)
            rows, columns = clips.draw_window((256, 341), options, rng)
            assert rng.bounds == [(len(pairs), None, None), (13, None, None)]
            top, left = down * ((256 - height) // 4), right * ((341 - width) // 4)
            assert (rows, columns) == (slice(top, top + height), slice(left, left + width))
    # A side that is almost that of the crop becomes that of the crop.
    assert clips.draw_window((226, 300), options, Draws(0, 0)) == (slice(0, 224), slice(0, 224))
    # In smaller frames it stays inside.
    assert clips.draw_window((223, 300), options, Draws(0, 0)) == (slice(0, 223), slice(0, 223))


def test_a_crop_of_a_random_area():
    options = make_config(data__crop_area=(0.08, 1.0)).data
    areas, ratios = [], []
    for seed in range(200):
        rows, columns = clips.draw_window((48, 64), options, np.random.default_rng(seed))
        assert 0 <= rows.start < rows.stop <= 48
        assert 0 <= columns.start < columns.stop <= 64
        height, width = rows.stop - rows.start, columns.stop - columns.start
        areas.append(height * width / (48 * 64))
        ratios.append(width / height)
    assert 0.06 < min(areas) < 0.15
    assert 0.8 < max(areas) <= 1.01
    assert 0.65 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.5
    # No crop of the whole area fits into a frame that is four times as wide as high.
    options.crop_area = (1.0, 1.0)
    window = clips.draw_window((16, 64), options, np.random.default_rng(0))
    assert window == (slice(0, 16), slice(24, 40))


@pytest.mark.parametrize(
    ("size", "offsets"),
    [
        ((256, 341), [(0, 0), (0, 42), (0, 84)]),  # one column is in no crop
        ((455, 256), [(0, 0), (99, 0), (198, 0)]),
        ((256, 256), [(0, 0)] * 3),
    ],
)
def test_three_crops_worked_out_by_hand(size, offsets):
    windows = [window for window, _ in clips.view_windows(size, 256, 3)]
    assert [(rows.start, columns.start) for rows, columns in windows] == offsets


@pytest.mark.parametrize("turned", [False, True])
def test_the_crops_of_the_evaluation(turned):
    size = (61, 36) if turned else (36, 61)

    def corners(crop, crops):
        found = clips.view_windows(size, crop, crops)
        for (rows, columns), _ in found:
            assert rows.stop - rows.start == columns.stop - columns.start == crop
        starts = [(rows.start, columns.start) for (rows, columns), _ in found]
        return [s[::-1] if turned else s for s in starts], [mirrored for _, mirrored in found]

    assert corners(32, 1) == ([(2, 14)], [False])
    assert corners(36, 3) == ([(0, 0), (0, 12), (0, 24)], [False] * 3)
    starts, mirrored = corners(32, 10)
    assert sorted(starts[::2]) == [(0, 0), (0, 28), (2, 14), (4, 0), (4, 28)]
    assert starts[::2] == starts[1::2]
    assert mirrored == [False, True] * 5
    with pytest.raises(InputError, match="larger than frames"):
        corners(37, 3)


# ---------------------------------------------------------------------------------------------
# Examples.


def test_a_training_clip_is_drawn_before_it_is_decoded():
    video = Counted(movies.frames(30, (48, 64)))
    # The start, the shorter side, the place and the flip.
    rng = Draws(3, 36, 5, 7, 0.4)
    prepared = data.prepare_clip(example(video=video), make_config(), rng)
    indices = [3 + 2 * t for t in range(8)]
    assert video.calls == [indices]
    assert rng.bounds == [(15, None, None), (32, 41, None), (13, None, None), (25, None, None)]
    resized = [cv2.resize(frame, (48, 36)) for frame in movies.frames(30, (48, 64))[indices]]
    expected = np.stack(resized)[:, 5:29, 7:31, :]
    np.testing.assert_array_equal(prepared["clip"], expected[:, :, ::-1])
    assert prepared["clip"].dtype == np.uint8
    assert (prepared["label"], prepared["label"].dtype, prepared["label"].shape) == (
        3,
        np.int32,
        (),
    )
    unflipped = data.prepare_clip(example(), make_config(), Draws(3, 36, 5, 7, 0.6))
    np.testing.assert_array_equal(unflipped["clip"], expected)


@pytest.mark.parametrize("crop", [24, 50])
def test_crops_of_other_sizes_are_resized(crop):
    config = make_config(data__crop_scales=(1, 0.5), data__short_side=(40, 40), data__flip=0)
    config.data.crop = crop
    prepared = data.prepare_clip(example(), config, Draws(0, 40, 1, 4, 0.5))
    # A window of 40x20 in the center of 40x53.
    frames = movies.frames(30, (48, 64))[0:16:2]
    crops = [cv2.resize(f, (53, 40))[:, 16:36] for f in frames]
    expected = np.stack([cv2.resize(part, (crop, crop)) for part in crops])
    np.testing.assert_array_equal(prepared["clip"], expected)


def test_several_labels_become_a_vector():
    config = make_config(loss__kind="sigmoid")
    for label, ones in {(1, 4): [1, 4], (): [], 2: [2]}.items():
        prepared = data.prepare_clip(example(label=label), config, np.random.default_rng(0))
        assert prepared["label"].dtype == np.float32
        assert np.flatnonzero(prepared["label"]).tolist() == ones
        assert prepared["label"].shape == (5,)
        assert prepared["label"].sum() == len(ones)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("softmax", {"label": (1, 2)}, r"labels of example 'a' are \[1, 2\].*loss.kind=sigmoid"),
        ("softmax", {"label": ()}, r"labels of example 'a' are \[\]"),
        ("softmax", {"label": 5}, "labels of example 'a' are 5; use the class indices 0 to 4"),
        ("softmax", {"label": -1}, "are -1; use"),
        ("softmax", {"label": 1.5}, r"are 1.5; use the class"),
        ("sigmoid", {"label": (0, 7)}, r"are \[0, 7\]; use"),
    ],
)
def test_wrong_labels_are_refused(kind, fields, message):
    with pytest.raises(InputError, match=message):
        data.prepare_clip(example(**fields), make_config(loss__kind=kind), np.random.default_rng(0))


def test_an_example_of_another_task_is_refused():
    image = {"image": np.zeros((4, 4, 3), np.uint8), "label": 0, "id": "a"}
    with pytest.raises(InputError, match=r"lacks video \(it has image, label, id\)"):
        data.prepare_clip(image, make_config(), np.random.default_rng(0))
    with pytest.raises(InputError, match="'a' is of the type str; use an EncodedVideo"):
        data.prepare_clip(example(video="a.mp4"), make_config(), np.random.default_rng(0))


@pytest.mark.parametrize(("crops", "crop"), [(1, 30), (3, 36), (10, 30)])
def test_the_views_of_a_video(crops, crop):
    video = Counted(movies.frames(30, (48, 64)))
    config = make_config(evaluation__crops=crops, evaluation__crop=crop)
    views = data.read_views(video, config)
    assert data.num_views(config) == len(views) == 10 * crops
    assert views.dtype == np.uint8
    # Every frame is decoded once.
    assert video.calls == [[*range(30)]]
    resized = np.stack([cv2.resize(frame, (48, 36)) for frame in movies.frames(30, (48, 64))])
    numbers = itertools.product(
        clips.view_frames(30, config), clips.view_windows((36, 48), crop, crops)
    )
    for view, (frames, ((rows, columns), mirrored)) in zip(views, numbers, strict=True):
        expected = resized[frames][:, rows, columns]
        np.testing.assert_array_equal(view, expected[:, :, ::-1] if mirrored else expected)


def test_a_video_shorter_than_the_clip_begins_again():
    video = data.EncodedVideo(movies.video(3))
    config = make_config(evaluation__clips=2)
    prepared = data.prepare_clip(example(video=video), config, Draws(0, 36, 0, 0, 0.9))
    clip = prepared["clip"]
    np.testing.assert_array_equal(clip[3:6], clip[:3])
    assert (clip[0] != clip[1]).any()
    assert data.read_views(video, config).shape == (6, 8, 36, 36, 3)


def test_clips_are_batched():
    videos = [data.EncodedVideo(movies.video(20, seed=seed)) for seed in range(3)]
    source = [example(video=video, id=str(i)) for i, video in enumerate(videos)]

    def prepare(example, rng):
        return data.prepare_clip(example, make_config(), rng)

    batch = next(data.train_batches(source, prepare, batch_size=2, seed=0))
    assert batch["clip"].shape == (2, 8, 24, 24, 3)
    assert batch["label"].tolist() == [3, 3]
