import colorsys
import pathlib

import cv2
import narrow
import numpy as np
import pytest

from nonlocal_jax import data
from nonlocal_jax.data import augment
from tests.helpers import AUGMENTATION, NO_AUGMENTATION

CONFIG = AUGMENTATION | {"base_size": (64, 48), "crop": (32, 40)}
IDENTITY = NO_AUGMENTATION | {"base_size": (64, 48), "crop": (48, 64)}

# Written by tests/parity/write_golden.py.
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "mmsegmentation"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def coded(height, width):
    """Red and green of a pixel are its row and column. The label is equal to blue."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(height)[:, None]
    image[..., 1] = np.arange(width)
    image[..., 2] = (image[..., 0].astype(int) * 7 + image[..., 1] * 3) % 251
    return image, image[..., 2].copy()


def test_mmsegmentation_with_the_same_draws():
    golden = np.load(GOLDEN / "augmentation.npz")
    for seed, image, label in zip(narrow.SEEDS, golden["image"], golden["label"], strict=True):
        rng = np.random.default_rng(seed)
        ours = data.prepare_example(narrow.example(), narrow.AUGMENTATION, 5, rng)
        assert np.max(np.abs(ours["image"].astype(int) - image)) <= 1
        np.testing.assert_array_equal(ours["label"], label)


def test_the_identity_keeps_every_bit(rng):
    image, label = coded(48, 64)
    out_image, out_label = augment.augment(image, label, IDENTITY, rng)
    for before, after in ((image, out_image), (label, out_label)):
        np.testing.assert_array_equal(before, after)
        assert np.shares_memory(before, after)


@pytest.mark.parametrize("shape", [(48, 64), (20, 90), (100, 30)])
def test_output_has_the_size_of_the_crop(rng, shape):
    image, label = coded(*shape)
    for _ in range(20):
        out_image, out_label = augment.augment(image, label, CONFIG, rng)
        assert out_image.shape == (32, 40, 3)
        assert out_label.shape == (32, 40)
        assert out_image.dtype == out_label.dtype == np.uint8


def test_the_input_is_not_changed(rng):
    image, label = coded(48, 64)
    before = image.copy(), label.copy()
    for _ in range(10):
        augment.augment(image, label, CONFIG, rng)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


def test_one_generator_state_gives_one_example():
    image, label = coded(48, 64)
    draws = [augment.augment(image, label, CONFIG, np.random.default_rng(7)) for _ in range(2)]
    np.testing.assert_array_equal(draws[0][0], draws[1][0])
    np.testing.assert_array_equal(draws[0][1], draws[1][1])


def definition(image, label, config, rng):
    """The first two steps as they are defined: the whole image is resized, then cropped."""
    size = augment.draw_size(label.shape, config["base_size"], config["scale_range"], rng)
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)
    options = config["crop"], config["category_max_ratio"], rng
    window = augment.draw_window(size, label.__getitem__, *options)
    return image[window], label[window]


def test_a_crop_is_that_of_the_resized_image():
    config = CONFIG | {"base_size": (96, 64)}
    rng = np.random.default_rng(0)
    for seed in range(60):
        height, width = rng.integers(20, 120, 2)
        image = rng.choice(np.array([0, 255], np.uint8), (height, width, 3))
        label = rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
        if seed % 2:  # many windows have one class, so that some are drawn again
            label = cv2.resize(label[::15, ::15], label.shape[::-1], interpolation=0)
        ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
        actual = augment.random_resized_crop(image, label, config, ours)
        expected = definition(image, label, config, theirs)
        assert ours.bit_generator.state == theirs.bit_generator.state
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_size_is_by_a_uniform_factor_and_keeps_proportions(rng):
    sizes = [augment.draw_size((96, 128), (64, 48), (0.5, 2.0), rng) for _ in range(300)]
    heights = [height for height, _ in sizes]
    # The base size is truncated before the fit.
    assert all(abs(width - height * 4 / 3) <= 2 for height, width in sizes)
    assert min(heights) in (23, 24, 25)
    assert max(heights) in (94, 95, 96)
    assert abs(np.mean(heights) - 48 * 1.25) < 3


def test_crops_are_uniform_and_move_image_and_label_together(rng):
    image, label = coded(36, 44)
    config = IDENTITY | {"base_size": (36, 44), "crop": (32, 40)}
    corners = set()
    for _ in range(500):
        out_image, out_label = augment.random_resized_crop(image, label, config, rng)
        np.testing.assert_array_equal(out_image[..., 2], out_label)
        top, left = out_image[0, 0, :2]
        np.testing.assert_array_equal(out_image, image[top : top + 32, left : left + 40])
        corners.add((int(top), int(left)))
    assert corners == {(top, left) for top in range(5) for left in range(5)}


def test_a_crop_larger_than_the_image_takes_all_of_it(rng):
    window = augment.draw_window((20, 60), None, (32, 40), 1.0, rng)
    assert window[0] == slice(0, 20)
    assert window[1].stop - window[1].start == 40


class Windows:
    """A generator that returns given corners and counts them."""

    def __init__(self, corners):
        self.values = [value for corner in corners for value in corner]
        self.used = 0

    def integers(self, high):
        value = self.values[self.used]
        assert value < high
        self.used += 1
        return value


def columns(label, corners):
    """Returns the columns of the window that is chosen, and how many windows were drawn."""
    windows = Windows(corners)
    _, chosen = augment.draw_window(label.shape, label.__getitem__, (8, 8), 0.75, windows)
    return (chosen.start, chosen.stop), windows.used // 2


def half_and_half():
    label = np.zeros((8, 16), np.uint8)
    label[:, 8:] = 1
    return label


def test_a_crop_that_one_class_dominates_is_drawn_again():
    # Columns 0..7 have only class 0. Columns 2..9 have 3/4 of it, which is too much.
    corners = [(0, 0), (0, 2), (0, 3), (0, 4)]
    assert columns(half_and_half(), corners) == ((3, 11), 3)


def test_ignored_pixels_do_not_count_as_a_class():
    label = half_and_half()
    label[:, 8:] = 255
    assert columns(label, [(0, 4)] * 10 + [(0, 5)]) == ((5, 13), 11)


def test_the_tenth_redraw_is_accepted():
    assert columns(half_and_half(), [(0, 0)] * 10 + [(0, 1)] + [(0, 4)]) == ((1, 9), 11)


@pytest.mark.parametrize(
    ("flip", "expected"), [(0.0, {False}), (1.0, {True}), (0.5, {False, True})]
)
def test_flip(rng, flip, expected):
    image, label = coded(48, 64)
    seen = set()
    for _ in range(20):
        out_image, out_label = augment.augment(image, label, IDENTITY | {"flip": flip}, rng)
        flipped = bool(out_image[0, 0, 1] == 63)
        step = -1 if flipped else 1
        np.testing.assert_array_equal(out_image, image[:, ::step])
        np.testing.assert_array_equal(out_label, label[:, ::step])
        seen.add(flipped)
    assert seen == expected


def test_padding_is_ignored_and_nearly_zero_after_normalization():
    image, label = coded(20, 30)
    mean, std = np.array(CONFIG["mean"]), np.array((58.395, 57.12, 57.375))
    out_image, out_label = augment.pad(image, label, (32, 40), CONFIG["mean"])
    np.testing.assert_array_equal(out_image[:20, :30], image)
    np.testing.assert_array_equal(out_label[:20, :30], label)
    outside = np.ones((32, 40), bool)
    outside[:20, :30] = False
    assert (out_label[outside] == 255).all()
    assert np.abs((out_image[outside] - mean) / std).max() < 0.01


def slow_convert(image, scale=1.0, shift=0.0):
    """The conversion of mmsegmentation: float32, clip, truncate."""
    return np.clip(image.astype(np.float32) * scale + shift, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, -31.4), (1.0, 31.7), (0.53, 0.0), (1.49, 0.0)])
def test_brightness_and_contrast(rng, scale, shift):
    image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    out = augment.scale_and_shift(image, scale=scale, shift=shift)
    np.testing.assert_array_equal(out, slow_convert(image, scale, shift))


@pytest.mark.parametrize("scale", [0.5, 0.9, 1.5])
def test_saturation(rng, scale):
    image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    bgr = cv2.cvtColor(np.ascontiguousarray(image[..., ::-1]), cv2.COLOR_BGR2HSV)
    bgr[..., 1] = slow_convert(bgr[..., 1], scale)
    expected = cv2.cvtColor(bgr, cv2.COLOR_HSV2BGR)[..., ::-1]
    np.testing.assert_array_equal(augment.scale_saturation(image, scale), expected)


@pytest.mark.parametrize("shift", [-18, -1, 0, 17])
def test_hue(rng, shift):
    image = rng.integers(60, 200, (8, 8, 3), np.uint8)
    image[..., 0] = 220  # saturated, so that 8 bits represent the hue accurately
    image[..., 2] = 20
    out = augment.shift_hue(image, shift)
    for before, after in zip(image.reshape(-1, 3), out.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        expected = colorsys.hsv_to_rgb((hue + shift / 180) % 1, saturation, value)
        np.testing.assert_allclose(after / 255, expected, atol=5 / 255)


class Script:
    """A generator that returns given coin flips and records the requested ranges."""

    def __init__(self, coins):
        self.coins = list(coins)
        self.ranges = []

    def integers(self, low, high=None):
        if high is None:
            assert low == 2
            return self.coins.pop(0)
        self.ranges.append((low, high))
        return 5

    def uniform(self, low, high):
        self.ranges.append((low, high))
        return (low + high) / 2 + 0.25


BRIGHTNESS, CONTRAST, HUE = (-32, 32), (0.5, 1.5), (-18, 18)
SATURATION = CONTRAST


@pytest.mark.parametrize(
    ("coins", "ranges"),
    [
        # brightness, contrast last, [contrast], saturation, hue, [contrast]
        ((0, 0, 0, 0, 0), []),
        ((1, 0, 0, 0, 0), [BRIGHTNESS]),
        ((0, 0, 1, 0, 0), [CONTRAST]),
        ((0, 0, 0, 0, 1), [HUE]),
        ((0, 1, 1, 1, 1), [SATURATION, HUE, CONTRAST]),
        ((1, 0, 1, 1, 1), [BRIGHTNESS, CONTRAST, SATURATION, HUE]),
    ],
)
def test_distortions_come_in_this_order(rng, coins, ranges):
    image = rng.integers(0, 256, (8, 8, 3), np.uint8)
    script = Script(coins)
    augment.photometric_distortion(image, script)
    assert script.coins == []
    assert script.ranges == ranges


def test_contrast_before_or_after_the_colors_differs(rng):
    image = rng.integers(0, 256, (8, 8, 3), np.uint8)

    def expected(image, last):
        if not last:
            image = slow_convert(image, 1.25)
        image = augment.shift_hue(augment.scale_saturation(image, 1.25), 5)
        return slow_convert(image, 1.25) if last else image

    for last in (0, 1):
        out = augment.photometric_distortion(image, Script((0, last, 1, 1, 1)))
        np.testing.assert_array_equal(out, expected(image, last))


def test_each_distortion_happens_half_of_the_time(rng):
    image = np.full((1, 1, 3), (200, 100, 50), np.uint8)
    outs = [augment.photometric_distortion(image, rng) for _ in range(2000)]
    unchanged = np.mean([(out == image).all() for out in outs])
    assert abs(unchanged - 1 / 16) < 0.02
