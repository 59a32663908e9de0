import numpy as np
import pytest

from nonlocal_jax.errors import InputError
from nonlocal_jax.visualize import clip_sheet, example_sheet

NAMES, PALETTE = ("road", "sky"), ((200, 0, 0), (0, 0, 200))
IMAGE, STRIPE = (20, 160, 60), (205, 0, 110)


def sheet(size, number=1, caption="a"):
    images = [np.full((*size, 3), IMAGE, np.uint8) for _ in range(number)]
    labels = np.full((number, *size), 255, np.uint8)
    labels[:, : size[0] // 2] = 0
    return example_sheet(images, labels, [caption] * number, NAMES, PALETTE, "title")


@pytest.mark.parametrize(
    ("size", "expected"),
    [((64, 64), (256, 256)), ((300, 200), (300, 200)), ((896, 448), (448, 224))],
)
def test_examples_are_enlarged_or_reduced_and_ignored_pixels_are_striped(size, expected):
    picture = sheet(size)
    rows, columns = np.nonzero((picture == IMAGE).all(-1))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == expected
    labels = picture[rows.min() : rows.max() + 1, columns.max() + 1 :]
    half = len(labels) // 2
    road = (labels[..., 0] > 150) & (labels[..., 1] == labels[..., 2]) & (labels[..., 1] < 50)
    assert road[:half].sum() == half * expected[1]
    assert not road[half:].any()
    assert ((labels[half:] == STRIPE).all(-1).sum(1) > expected[1] / 5).all()


def test_every_example_is_drawn_and_long_captions_stay_in_their_column():
    picture = sheet((64, 64), number=5, caption="directory/" * 40)
    assert (picture == IMAGE).all(-1).sum() == 5 * 256**2
    assert (picture[:, -20:] == 255).all()


def test_no_images_are_refused():
    with pytest.raises(InputError, match="there are no images"):
        example_sheet([], [], [], NAMES, PALETTE)


@pytest.mark.parametrize(
    ("size", "expected"), [((32, 64), (64, 128)), ((50, 100), (50, 100)), ((256, 128), (128, 64))]
)
@pytest.mark.parametrize(("length", "shown"), [(1, [0]), (3, [0, 1, 2]), (22, range(0, 22, 3))])
def test_frames_of_a_clip_are_side_by_side(size, expected, length, shown):
    levels = 3 * np.arange(length, dtype=np.uint8) + 130
    clip = np.broadcast_to(levels[:, None, None, None], (length, *size, 3)).copy()
    clip[..., 0] = 50
    picture = clip_sheet([clip] * 2, ["directory/" * 40] * 2)
    assert (picture[:, -20:] == 255).all()
    frames = picture[(picture[..., 0] == 50) & (picture[..., 1] == picture[..., 2])]
    found, counts = np.unique(frames[:, 1], return_counts=True)
    assert found.tolist() == [levels[number] for number in shown]
    assert (counts == 2 * expected[0] * expected[1]).all()


def test_no_clips_are_refused():
    with pytest.raises(InputError, match="there are no clips"):
        clip_sheet([], [])
