"""``digits_flag``: a segmentation dataset that requires distant context.

An image shows two flags and four handwritten digits on a darkened photograph. The two flags have
different colors. Each is a disc or a ring. Each digit has the color of one of the flags. Its class
is 1 if the flag of its color is a disc, and 2 if it is a ring. The flags themselves are background
(class 0). They are at least ``MIN_DISTANCE`` pixels away from every digit.

Colors and shapes are drawn independently. The surroundings of a digit say nothing about its class.
The shapes in the image, without their colors, determine the class in the half of the images whose
two flags have the same shape. The shape of the flag of the digit's color always determines it.

The digits and photographs come with scikit-learn: the UCI digits (CC BY 4.0), ``china.jpg`` by
danielbuechele and ``flower.jpg`` by vultilion (CC BY 2.0). Train and val share no digit and no part
of a photograph.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from etils import epath

from nonlocal_jax.data.datasets._dataset import DATASETS
from nonlocal_jax.data.datasets._location import create_directory
from nonlocal_jax.data.images import encode_png
from nonlocal_jax.errors import InputError

NUM_EXAMPLES = {"train": 2048, "val": 256}
SIZE = 64
NUM_FLAGS = 2
NUM_DIGITS = 4
DIGIT_SIZE = 16
FLAG_SIZE = 15
# The ring is three pixels wide.
HOLE_SIZE = 9
# A receptive field of 31 pixels reaches 15 pixels from its center: to the rim of the nearest flag,
# but not to its hole. (The logits have stride 4 and are interpolated, so a pixel also sees fields
# whose centers are up to 4 pixels away. Through them 7 % of the digits' pixels see a hole, with a
# small weight. Trained networks without a block are at chance on these pixels, too.)
MIN_DISTANCE = 13

_SEED = 1
_PHOTO_BRIGHTNESS = 0.15
# Pixels with at least this much ink, of 255, belong to the digit. The value is low because thin
# strokes would be lost at stride 4.
_LEAST_INK = 24
_COLORS = np.array(
    [
        (255, 64, 64),
        (255, 255, 64),
        (64, 255, 64),
        (64, 255, 255),
        (64, 64, 255),
        (255, 64, 255),
    ],
    np.uint8,
)


def _disc(diameter: int) -> np.ndarray:
    y, x = np.ogrid[:FLAG_SIZE, :FLAG_SIZE]
    return 4 * ((y - FLAG_SIZE // 2) ** 2 + (x - FLAG_SIZE // 2) ** 2) < diameter**2


# The pixels of a flag, by the class of its digits: a disc and a ring.
_FLAGS = {1: _disc(FLAG_SIZE), 2: _disc(FLAG_SIZE) & ~_disc(HOLE_SIZE)}


def load_material() -> tuple[np.ndarray, list[np.ndarray]]:
    """Loads the digits, uint8 ``[1797, 8, 8]`` from 0 to 255, and the RGB photographs.

    Raises:
      InputError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise InputError(
            "scikit-learn is not installed, but digits_flag is built from its images; run "
            "`pip install scikit-learn`"
        ) from error
    digits = np.round(datasets.load_digits().images * (255 / 16)).astype(np.uint8)
    return digits, [datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")]


def split_material(
    digits: np.ndarray, photos: list[np.ndarray], split: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the material of a split: the first three quarters for "train", the rest for "val".

    Photographs are split along their width.
    """
    number, width = len(digits) * 3 // 4, photos[0].shape[1] * 3 // 4
    part = slice(None, number), slice(None, width)
    if split == "val":
        part = slice(number, None), slice(width, None)
    return digits[part[0]], [photo[:, part[1]] for photo in photos]


def draw_layout(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws the top left corners of the flags, ``[2, 2]``, and of the digits, ``[4, 2]``."""
    while True:
        flags = _draw_corners(rng, NUM_FLAGS, FLAG_SIZE)
        margin = MIN_DISTANCE - 1
        digits = _draw_corners(
            rng,
            NUM_DIGITS,
            DIGIT_SIZE,
            taken=[(flag - margin, flag + FLAG_SIZE + margin) for flag in flags],
        )
        if len(digits) == NUM_DIGITS:
            return flags, digits


def _draw_corners(
    rng: np.random.Generator,
    number: int,
    size: int,
    taken: Sequence[tuple[np.ndarray, np.ndarray]] = (),
) -> np.ndarray:
    """Draws the corners of squares that overlap neither each other nor the taken rectangles.

    A taken rectangle is a pair of corners (row, column): the first and one past the last. Returns
    fewer than ``number`` corners if there is no space left.
    """
    free = np.ones((SIZE - size + 1,) * 2, bool)
    corners = []
    for first, stop in taken:
        _forbid(free, first - size + 1, stop)
    while free.any() and len(corners) < number:
        places = np.argwhere(free)
        corner = places[rng.integers(len(places))]
        corners.append(corner)
        _forbid(free, corner - size + 1, corner + size)
    return np.array(corners)


def _forbid(free: np.ndarray, first: np.ndarray, stop: np.ndarray) -> None:
    free[max(first[0], 0) : max(stop[0], 0), max(first[1], 0) : max(stop[1], 0)] = False


def draw_example(
    rng: np.random.Generator, digits: np.ndarray, photos: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one image, RGB uint8 ``[64, 64, 3]``, and its label map, uint8 ``[64, 64]``."""
    photo = photos[rng.integers(len(photos))]
    top, left = (rng.integers(extent - SIZE + 1) for extent in photo.shape[:2])
    image = photo[top : top + SIZE, left : left + SIZE] * _PHOTO_BRIGHTNESS
    label = np.zeros((SIZE, SIZE), np.uint8)

    colors = rng.permutation(_COLORS)[:NUM_FLAGS]
    classes = rng.integers(1, 3, NUM_FLAGS)
    flag_corners, digit_corners = draw_layout(rng)
    for corner, color, class_ in zip(flag_corners, colors, classes, strict=True):
        image[_square(corner, FLAG_SIZE)][_FLAGS[class_]] = color
    for corner, flag in zip(digit_corners, rng.integers(NUM_FLAGS, size=NUM_DIGITS), strict=True):
        place = _square(corner, DIGIT_SIZE)
        inked = paint_digit(image[place], digits[rng.integers(len(digits))], colors[flag])
        label[place][inked] = classes[flag]
    return np.round(image).astype(np.uint8), label


def paint_digit(image: np.ndarray, digit: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Paints a digit, ``[8, 8]``, on ``[*, 16, 16, 3]``, in place. Returns its pixels as a mask."""
    size = (DIGIT_SIZE, DIGIT_SIZE)
    ink = cv2.resize(digit, size, interpolation=cv2.INTER_LINEAR_EXACT)
    inked = ink >= _LEAST_INK
    # At least half opaque, so that all pixels of a digit are visible.
    opacity = np.minimum(0.5 + ink / 255, 1)[inked, None]
    image[..., inked, :] += opacity * (color - image[..., inked, :])
    return inked


def _square(corner: np.ndarray, size: int) -> tuple[slice, slice]:
    return slice(corner[0], corner[0] + size), slice(corner[1], corner[1] + size)


def build_once(directory: epath.Path) -> None:
    """Builds the dataset in ``DATA_DIR/digits_flag/VERSION`` unless it exists.

    It takes seconds and always generates the same examples.

    Raises:
      InputError: scikit-learn is not installed, or the directory is not writable.
    """
    create_directory(directory, _write)


def _write(directory: epath.Path) -> None:
    from nonlocal_jax.data.datasets._build import build  # TFDS is slow to import

    material = load_material()
    splits = {split: _examples(split, *split_material(*material, split)) for split in NUM_EXAMPLES}
    build(DATASETS["digits_flag"], splits, directory)


def _examples(split: str, digits: np.ndarray, photos: list[np.ndarray]) -> Iterator[dict[str, Any]]:
    for key, index in shuffled(split, NUM_EXAMPLES[split]):
        # Every example has its own generator, so it does not depend on the others.
        rng = np.random.default_rng((_SEED, list(NUM_EXAMPLES).index(split), index))
        image, label = draw_example(rng, digits, photos)
        yield {
            "image": encode_png(image),
            "label": encode_png(label),
            "id": key,
            "height": SIZE,
            "width": SIZE,
        }


def shuffled(split: str, number: int) -> list[tuple[str, int]]:
    """Returns the ids and the numbers of the examples, in the order in which they are stored."""
    from tensorflow_datasets.core.hashing import Hasher

    keys = {f"{split}_{index:04d}": index for index in range(number)}
    # The order in which TFDS shuffles examples. Runs can be resumed only with this order.
    return [(key, keys[key]) for key in sorted(keys, key=Hasher(split).hash_key)]
