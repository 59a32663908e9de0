"""Clips and views: which frames."""

import pytest

from nonlocal_jax.data import clips
from nonlocal_jax.errors import InputError
from tests.data.test_clips import Draws, make_config

LENGTHS = range(1, 401)


@pytest.mark.parametrize(("frames", "interval"), [(32, 2), (8, 8), (128, 1), (1, 1)])
def test_a_clip_starts_anywhere_and_wraps(frames, interval):
    options = make_config(data__frames=frames, data__interval=interval).data
    for length in LENGTHS:
        first = Draws(0)
        clips.draw_frames(length, options, first)
        ((bound, _, _),) = first.bounds
        assert bound == max(length - frames * interval, 0) + 1
        start = (bound - 1) // 2
        expected = [(start + t * interval) % length for t in range(frames)]
        assert clips.draw_frames(length, options, Draws(start)).tolist() == expected


def test_a_frame_of_each_segment():
    options = make_config(data__sampling="segments").data
    for length in LENGTHS:
        part = length // 8
        drawn = clips.draw_frames(length, options, Draws(max(part - 1, 0)))
        if part:
            assert drawn.tolist() == [t * part + part - 1 for t in range(8)]
        else:  # round half to even
            assert drawn.tolist() == [round(t * length / 8) % length for t in range(8)]
    rng = Draws(0)
    clips.draw_frames(83, options, rng)
    assert rng.bounds == [(10, None, 8)]


@pytest.mark.parametrize("number", [1, 3, 10])
def test_the_starts_of_the_evaluation(number):
    for length in LENGTHS:
        last = max(length - 15, 0)
        step = last / (number - 1) if number > 1 else 0
        expected = {
            "wrap": [k * length // number for k in range(number)],
            "even": [round(k * step) for k in range(number)] if number > 1 else [last // 2],
        }
        for kind, starts in expected.items():
            config = make_config(evaluation__clips=number, evaluation__starts=kind)
            assert clips.view_frames(length, config).tolist() == [
                [(start + 2 * t) % length for t in range(8)] for start in starts
            ]


# Worked out by hand from the definitions of the sources, for clips of 8 frames that are 8 apart:
# the starts of the ten clips, and the frames of the last one.
STARTS = {
    # The NL paper's release: floor(k n / 10), modulo n.
    ("wrap", 300): (range(0, 300, 30), [270, 278, 286, 294, 2, 10, 18, 26]),
    ("wrap", 37): ([0, 3, 7, 11, 14, 18, 22, 25, 29, 33], [33, 4, 12, 20, 28, 36, 7, 15]),
    ("wrap", 5): ([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], [4, 2, 0, 3, 1, 4, 2, 0]),
    # The dense clips of TSM: k / 9 of the last start, n - 57.
    ("even", 300): (range(0, 270, 27), [243, 251, 259, 267, 275, 283, 291, 299]),
    ("even", 100): ([0, 5, 10, 14, 19, 24, 29, 33, 38, 43], [43, 51, 59, 67, 75, 83, 91, 99]),
    ("even", 40): ([0] * 10, [0, 8, 16, 24, 32, 0, 8, 16]),
}


@pytest.mark.parametrize(("kind", "length"), STARTS)
def test_frames_of_the_evaluation_worked_out_by_hand(kind, length):
    starts, last = STARTS[kind, length]
    config = make_config(data__interval=8, evaluation__starts=kind)
    frames = clips.view_frames(length, config)
    assert frames[:, 0].tolist() == [*starts]
    assert frames[-1].tolist() == last


@pytest.mark.parametrize(
    ("length", "number_of_starts", "last"),
    [
        (100, 37, [36, 44, 52, 60, 68, 76, 84, 92]),
        (70, 7, [6, 14, 22, 30, 38, 46, 54, 62]),
        (20, 1, [0, 8, 16, 4, 12, 0, 8, 16]),
    ],
)
def test_frames_of_training_worked_out_by_hand(length, number_of_starts, last):
    rng = Draws(number_of_starts - 1)
    assert clips.draw_frames(length, make_config(data__interval=8).data, rng).tolist() == last
    assert rng.bounds == [(number_of_starts, None, None)]


def test_the_centers_of_the_segments():
    config = make_config(evaluation__clips=1, evaluation__starts="segments")
    for length in LENGTHS:
        (frames,) = clips.view_frames(length, config)
        assert frames.tolist() == [int((2 * t + 1) * length / 16) for t in range(8)]
    config.evaluation.clips = 2
    with pytest.raises(InputError, match=r"segments has one clip, but .*clips=2"):
        clips.view_frames(30, config)
