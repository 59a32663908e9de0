import cv2
import numpy as np

from nonlocal_jax.data import augment, crop
from tests.helpers import AUGMENTATION


def noise(rng, height, width):
    """The hardest image to interpolate: black and white pixels, and a few labels."""
    image = rng.choice(np.array([0, 255], np.uint8), (height, width, 3))
    return image, rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))


def window(rng, size):
    starts = [int(rng.integers(n)) for n in size]
    return tuple(
        slice(start, int(rng.integers(start, n)) + 1) for start, n in zip(starts, size, strict=True)
    )


def test_a_window_is_that_of_the_resized_image():
    """Any size to any size, and to almost the same size."""
    rng = np.random.default_rng(0)
    for number in range(400):
        image, label = noise(rng, *rng.integers(1, 120, 2))
        size = tuple(int(n) for n in rng.integers(1, 300, 2))
        if number % 4 == 0:
            size = tuple(max(n + int(rng.integers(-2, 3)), 1) for n in label.shape)
        part = window(rng, size)
        expected = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(crop.resample_labels(label, size, part), expected[part])
        expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)[part]
        np.testing.assert_array_equal(crop.resample_image(image, size, part), expected)


def test_columns_of_all_sizes_are_those_of_opencv():
    """Including the sizes for which rounding decides, as 1000 / (1 / 3)."""
    for extent in (1, 3, 49, 64, 100, 255):
        label = np.arange(extent, dtype=np.uint8)[None]
        for n in range(1, 4 * extent):
            expected = cv2.resize(label, (n, 1), interpolation=cv2.INTER_NEAREST)
            whole = slice(0, 1), slice(0, n)
            np.testing.assert_array_equal(crop.resample_labels(label, (1, n), whole), expected)
            tall = crop.resample_labels(label.T.copy(), (n, 1), whole[::-1])
            np.testing.assert_array_equal(tall.T, expected)


def test_it_is_the_augmentation_with_the_same_draws():
    config = AUGMENTATION | {"base_size": (96, 64), "crop": (32, 40)}
    rng = np.random.default_rng(0)
    for seed in range(60):
        image, label = noise(rng, *rng.integers(20, 120, 2))
        if seed % 2:  # many windows have one class, so that some are drawn again
            label = cv2.resize(label[::15, ::15], label.shape[::-1], interpolation=0)
        ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
        actual = crop.augment_crop(image, label, config, ours)
        expected = augment.augment(image, label, config, theirs)
        assert ours.bit_generator.state == theirs.bit_generator.state
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_image_that_is_not_resized_is_not_resampled():
    image, label = noise(np.random.default_rng(0), 20, 30)
    part = slice(3, 10), slice(4, 30)
    image.flags.writeable = label.flags.writeable = False  # like those of a cache
    for array, resample in ((image, crop.resample_image), (label, crop.resample_labels)):
        out = resample(array, (20, 30), part)
        np.testing.assert_array_equal(out, array[part])
        assert np.shares_memory(out, array)
