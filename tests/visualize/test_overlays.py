"""Sizes, colors and positions in pictures."""

import numpy as np
import pytest

from nonlocal_jax.errors import InputError
from nonlocal_jax.visualize import overlays as draw

PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
NAMES = ("rose", "leaf", "sky")


def test_color_overlay_mixes_the_color_of_the_class():
    image = np.full((2, 2, 3), 100, np.uint8)
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    overlay = draw.color_overlay(image, labels, PALETTE, alpha=0.6)
    assert overlay.dtype == np.uint8
    np.testing.assert_array_equal(
        overlay, [[[193, 40, 40], [40, 193, 40]], [[40, 40, 193], [100, 100, 100]]]
    )


def test_an_overlay_has_the_hue_of_the_legend():
    """Whatever the colors of the image are."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30, 3), np.uint8)
    palette = rng.integers(0, 256, (7, 3))
    labels = rng.integers(0, 7, (20, 30))
    overlay = draw.color_overlay(image, labels, palette, alpha=0.6).astype(int)
    expected = 0.6 * palette[labels]
    gray = overlay - expected  # the same in all channels
    assert np.ptp(gray, axis=-1).max() <= 1
    assert gray.std() > 10  # the image is visible


def test_wrong_shapes_and_types_are_refused():
    image = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(InputError, match=r"\(3, 2\); use \(2, 2\), the size of the image"):
        draw.color_overlay(image, np.zeros((3, 2), int), PALETTE)
    with pytest.raises(InputError, match=r"is float32 .*; use uint8 RGB \[H, W, 3\]"):
        draw.add_legend(image.astype(np.float32), np.zeros((2, 2), int), NAMES, PALETTE)
    with pytest.raises(InputError, match=r"the shape \(2, 2, 2\); use a map \[H', W'\]"):
        draw.attention_overlay(image, np.zeros((2, 2, 2)), (0, 0))


def test_the_legend_lists_the_classes_that_occur_most_frequent_first():
    image = np.full((90, 300, 3), 7, np.uint8)
    labels = np.full((90, 300), 2, np.uint8)
    labels[:2] = 0
    labels[5, :26] = 1  # less than a thousandth of the pixels
    picture = draw.add_legend(image, labels, NAMES, PALETTE)
    assert picture.dtype == np.uint8
    assert picture.shape[1] == 300
    np.testing.assert_array_equal(picture[:90], image)
    legend = picture[90:]
    columns = {c: np.nonzero((legend == PALETTE[c]).all(-1))[1] for c in range(3)}
    assert columns[1].size == 0
    assert columns[2].max() < columns[0].min()
    assert (legend < 100).all(-1).any()  # dark text


def test_a_legend_that_is_wider_than_the_picture_wraps_and_pads_it():
    image = np.full((8, 10, 3), 7, np.uint8)
    labels = np.zeros((8, 10), np.uint8)
    labels[0] = 1
    picture = draw.add_legend(image, labels, NAMES, PALETTE)
    np.testing.assert_array_equal(picture[:8, :10], image)
    assert (picture[:8, 10:] == 255).all()
    rows = [np.nonzero((picture == PALETTE[c]).all(-1))[0] for c in (0, 1)]
    assert rows[0].max() < rows[1].min()
    # the text ends inside of the picture
    assert (picture[:, -1] == 255).all()


def test_attention_overlay_is_brightest_where_the_weight_is():
    image = np.full((64, 96, 3), 60, np.uint8)
    weights = np.zeros((8, 12))
    weights[6, 2] = 0.4
    picture = draw.attention_overlay(image, weights, (10, 80))
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    brightness = picture.astype(int).sum(-1)
    brightness[:22, 68:] = 0  # the ring
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert abs(row - 52) <= 4
    assert abs(column - 20) <= 4
    np.testing.assert_array_equal(picture[30, 60], [33, 33, 33])  # dimmed, no weight
    # the ring is green, and nothing else is
    rows, columns = np.nonzero(picture[..., 1].astype(int) - picture[..., 0] > 60)
    assert rows.mean() == pytest.approx(10, abs=1)
    assert columns.mean() == pytest.approx(80, abs=1)


def test_attention_overlay_of_no_attention_is_the_dimmed_image():
    image = np.full((40, 40, 3), 100, np.uint8)
    picture = draw.attention_overlay(image, np.zeros((5, 5)), (5, 5))
    np.testing.assert_array_equal(picture[20:], np.full((20, 40, 3), 55))
