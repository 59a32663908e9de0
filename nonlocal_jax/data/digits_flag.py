"""``digits_flag``: a segmentation task that only far context decides.

An image holds two flags and four handwritten digits on a dimmed photograph. Each flag is a disc or
a ring and has a color of its own; each digit has one of these two colors. It belongs to class 1
if the flag of its color is a disc, to class 2 if it is a ring. The flags themselves are background
(class 0) and lie at least ``MIN_DISTANCE`` pixels away from every digit.

Colors and shapes are drawn independently. What shapes there are, whatever their colors, tells the
class in the half of the images whose flags are alike; the flag of the digit's own color tells it
always; what lies around a digit, never.

The digits and photographs are those that come with scikit-learn: the UCI digits (CC BY 4.0),
``china.jpg`` by danielbuechele and ``flower.jpg`` by vultilion (CC BY 2.0). Train and val share
neither a digit nor a patch of a photograph.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds

from nonlocal_jax.data.classes import IGNORE_INDEX, get_info
from nonlocal_jax.data.images import encode_png
from nonlocal_jax.errors import InputError

NUM_EXAMPLES = {"train": 2048, "val": 256}
SIZE = 64
NUM_FLAGS = 2
NUM_DIGITS = 4
DIGIT_SIZE = 16
FLAG_SIZE = 15
# A ring is three pixels wide.
HOLE_SIZE = 9
# A receptive field of 31 pixels reaches 15 pixels from its center: to the rim of the nearest flag,
# not into its hole. (Logits of stride 4 that are then interpolated bring in fields up to 4 pixels
# nearer, and with them holes for 7 % of the digits' pixels, faintly: trained networks without a
# block stay at chance there as well.)
MIN_DISTANCE = 13

_SEED = 1
_PHOTO_BRIGHTNESS = 0.15
# Of 255: from here on a pixel belongs to the digit. Low, as thin strokes would be lost at stride 4.
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


# The pixels of a flag, by the class of the digits that belong to it: a disc, a ring.
_FLAGS = {1: _disc(FLAG_SIZE), 2: _disc(FLAG_SIZE) & ~_disc(HOLE_SIZE)}


def load_material() -> tuple[np.ndarray, list[np.ndarray]]:
    """Gives the digits, uint8 ``[1797, 8, 8]`` from 0 to 255, and the photographs, RGB.

    Raises:
      InputError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise InputError(
            "digits_flag is made of images that come with scikit-learn: pip install scikit-learn"
        ) from error
    digits = np.round(datasets.load_digits().images * (255 / 16)).astype(np.uint8)
    return digits, [datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")]


def split_material(
    digits: np.ndarray, photos: list[np.ndarray], split: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Gives train three quarters of the digits and of each photograph's width, val the rest."""
    number, width = len(digits) * 3 // 4, photos[0].shape[1] * 3 // 4
    part = slice(None, number), slice(None, width)
    if split == "val":
        part = slice(number, None), slice(width, None)
    return digits[part[0]], [photo[:, part[1]] for photo in photos]


def draw_layout(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws the upper left corners of the flags, ``[2, 2]``, and of the digits, ``[4, 2]``."""
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
    """Draws the corners of squares that overlap neither one another nor what is taken.

    A taken rectangle is (first, one past the last), each as (row, column). Fewer corners than
    ``number`` mean that no place was left.
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
    """Draws one image, uint8 ``[64, 64, 3]`` RGB, and its label, uint8 ``[64, 64]``."""
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
        ink = cv2.resize(
            digits[rng.integers(len(digits))],
            (DIGIT_SIZE, DIGIT_SIZE),
            interpolation=cv2.INTER_LINEAR_EXACT,
        )
        inked = ink >= _LEAST_INK
        # Half a tint where the pen just touched, so that the pixels of a digit stand out.
        opacity = np.minimum(0.5 + ink / 255, 1)[inked, None]
        image[place][inked] += opacity * (colors[flag] - image[place][inked])
        label[place][inked] = classes[flag]
    return np.round(image).astype(np.uint8), label


def _square(corner: np.ndarray, size: int) -> tuple[slice, slice]:
    return slice(corner[0], corner[0] + size), slice(corner[1], corner[1] + size)


class DigitsFlag(tfds.core.GeneratorBasedBuilder):
    """Builds ``digits_flag``, always the same, in seconds and from what scikit-learn ships."""

    VERSION = tfds.core.Version("2.0.0")
    url_infos: ClassVar[dict] = {}  # nothing is downloaded, so there is no list of checksums

    def _info(self) -> tfds.core.DatasetInfo:
        info = get_info("digits_flag")
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                    "label": tfds.features.Image(shape=(SIZE, SIZE, 1), encoding_format="png"),
                    "id": tfds.features.Text(),
                    "height": np.int32,
                    "width": np.int32,
                }
            ),
            metadata=tfds.core.MetadataDict(
                classes=info.classes, palette=info.palette, ignore_index=IGNORE_INDEX
            ),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        material = load_material()
        return {
            split: self._generate_examples(split, *split_material(*material, split))
            for split in NUM_EXAMPLES
        }

    def _generate_examples(
        self, split: str, digits: np.ndarray, photos: list[np.ndarray]
    ) -> Iterator[tuple[str, dict]]:
        for index in range(NUM_EXAMPLES[split]):
            # One stream per example and split: no image depends on how many there are.
            rng = np.random.default_rng((_SEED, list(NUM_EXAMPLES).index(split), index))
            image, label = draw_example(rng, digits, photos)
            key = f"{split}_{index:04d}"
            yield (
                key,
                {
                    # As bytes: TFDS would need TensorFlow to encode an array.
                    "image": encode_png(image),
                    "label": encode_png(label),
                    "id": key,
                    "height": SIZE,
                    "width": SIZE,
                },
            )
