import numpy as np
import pytest

from nonlocal_jax.errors import InputError
from nonlocal_jax.visualize import example_sheet

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
