"""``digits_flag``: a segmentation task that only far context decides.

An image holds a coloured disc, the flag, and six handwritten digits on a dimmed photograph: three
to five in the flag's colour (class 1), the others in one other colour (class 2). The flag itself is
background (class 0). It lies at least ``MIN_DISTANCE`` pixels away from every digit, so nothing
around a digit tells its class. Two things far away do: the colour of the flag, always, and which
colour more digits have, unless there are three of each.

The digits and photographs are those that come with scikit-learn: the UCI digits (CC BY 4.0),
``china.jpg`` by danielbuechele and ``flower.jpg`` by vultilion (CC BY 2.0). Train and val share
neither a digit nor a patch of a photograph.
"""

from collections.abc import Iterator
from typing import ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds

from nonlocal_jax.data.classes import get_info
from nonlocal_jax.data.images import encode_png
from nonlocal_jax.errors import InputError

NUM_EXAMPLES = {"train": 2048, "val": 256}
SIZE = 64
NUM_DIGITS = 6
DIGIT_SIZE = 16
# An image has one of these numbers of digits in the flag's colour. With three always, nothing but
# the whole solution lowers the loss, and training may not leave the start.
NUM_LIKE_FLAG = (3, 4, 5)
FLAG_RADIUS = 9
# A receptive field of 31 pixels reaches 15 pixels from its centre: at most the rim of the flag is
# in sight, and of the nearest strokes alone. Farther flags make the start of training a plateau.
MIN_DISTANCE = 12

_SEED = 1
_PHOTO_BRIGHTNESS = 0.15
# Of 255: from here on a pixel belongs to the digit. Low, as thin strokes would be lost at stride 4.
_LEAST_INK = 24
_COLOURS = np.array([(255, 64, 64), (64, 255, 64), (64, 64, 255)], np.uint8)


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
    """Draws where the flag and the digits lie.

    The flag is placed first; each digit then takes one of the places that the flag and the digits
    before leave free. Where none is left, the whole drawing starts again.

    Returns:
      The centre of the flag, ``[2]``, and the upper left corners of the digits, ``[6, 2]``, as
      (row, column).
    """
    rows, columns = np.indices((SIZE - DIGIT_SIZE + 1,) * 2)
    while True:
        flag = rng.integers(FLAG_RADIUS, SIZE - FLAG_RADIUS, 2)
        free = np.ones(rows.shape, bool)
        reach = FLAG_RADIUS + MIN_DISTANCE
        _forbid(free, flag - reach - DIGIT_SIZE + 2, flag + reach)
        corners = []
        while free.any() and len(corners) < NUM_DIGITS:
            pick = rng.integers(np.count_nonzero(free))
            corner = np.array([rows[free][pick], columns[free][pick]])
            _forbid(free, corner - DIGIT_SIZE + 1, corner + DIGIT_SIZE)
            corners.append(corner)
        if len(corners) == NUM_DIGITS:
            return flag, np.array(corners)


def _forbid(free: np.ndarray, start: np.ndarray, stop: np.ndarray) -> None:
    free[max(start[0], 0) : max(stop[0], 0), max(start[1], 0) : max(stop[1], 0)] = False


def draw_example(
    rng: np.random.Generator, digits: np.ndarray, photos: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one image, uint8 ``[64, 64, 3]`` RGB, and its label, uint8 ``[64, 64]``."""
    photo = photos[rng.integers(len(photos))]
    top, left = (rng.integers(extent - SIZE + 1) for extent in photo.shape[:2])
    image = photo[top : top + SIZE, left : left + SIZE] * _PHOTO_BRIGHTNESS
    label = np.zeros((SIZE, SIZE), np.uint8)

    number = rng.choice(NUM_LIKE_FLAG)
    classes = rng.permutation([1] * number + [2] * (NUM_DIGITS - number))
    colours = rng.permutation(_COLOURS)[:2]
    (row, column), corners = draw_layout(rng)
    y, x = np.ogrid[:SIZE, :SIZE]
    image[(y - row) ** 2 + (x - column) ** 2 <= FLAG_RADIUS**2] = colours[0]
    for (row, column), class_ in zip(corners, classes, strict=True):
        place = slice(row, row + DIGIT_SIZE), slice(column, column + DIGIT_SIZE)
        ink = cv2.resize(
            digits[rng.integers(len(digits))],
            (DIGIT_SIZE, DIGIT_SIZE),
            interpolation=cv2.INTER_LINEAR_EXACT,
        )
        inked = ink >= _LEAST_INK
        # Half a tint where the pen just touched, so that the pixels of a digit stand out.
        opacity = np.minimum(0.5 + ink / 255, 1)[inked, None]
        image[place][inked] += opacity * (colours[class_ - 1] - image[place][inked])
        label[place][inked] = class_
    return np.round(image).astype(np.uint8), label


class DigitsFlag(tfds.core.GeneratorBasedBuilder):
    """Builds ``digits_flag``, always the same, in seconds and from what scikit-learn ships."""

    VERSION = tfds.core.Version("1.0.0")
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
                classes=info.classes, palette=info.palette, ignore_index=info.ignore_index
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
