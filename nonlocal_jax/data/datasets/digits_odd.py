"""``digits_odd``: a video dataset that requires relations between distant frames.

A clip shows three handwritten digits on a darkened photograph, one after another: the first in
frames 0 and 1, the second in frames 3 and 4, the third in frames 6 and 7. Two of the digits have
the same color. The class of the clip is the color of the third, the odd one. The digits, their
places, the order and the colors are drawn independently.

A frame shows at most one digit, so it says nothing about the class. Nor does a sum over the frames
with a linear classifier: the color of the odd digit occurs once, others occur twice or never, and
no linear function of the number is largest for one. A network must relate the frames before it
sums over them.

The digits and photographs are those of ``digits_flag``. Train and val share no digit and no part of
a photograph.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from nonlocal_jax.data.datasets._dataset import DATASETS
from nonlocal_jax.data.datasets._location import create_directory
from nonlocal_jax.data.datasets.digits_flag import (
    DIGIT_SIZE,
    load_material,
    paint_digit,
    shuffled,
    split_material,
)
from nonlocal_jax.data.images import encode_png

NUM_EXAMPLES = {"train": 2048, "val": 512}
NUM_FRAMES = 8
SIZE = 32
# The first of the two frames of each digit. Frames 2 and 5 show none.
FIRST_FRAMES = (0, 3, 6)

_SEED = 2
_PHOTO_BRIGHTNESS = 0.15


def draw_example(
    rng: np.random.Generator, digits: np.ndarray, photos: list[np.ndarray]
) -> tuple[np.ndarray, int]:
    """Draws one clip, RGB uint8 ``[8, 32, 32, 3]``, and its class."""
    photo = photos[rng.integers(len(photos))]
    top, left = (rng.integers(extent - SIZE + 1) for extent in photo.shape[:2])
    frame = photo[top : top + SIZE, left : left + SIZE] * _PHOTO_BRIGHTNESS
    clip = np.stack([frame] * NUM_FRAMES)

    colors = np.array(DATASETS["digits_odd"].palette)
    common, odd = rng.permutation(len(colors))[:2]
    for first, color in zip(FIRST_FRAMES, rng.permutation([common, common, odd]), strict=True):
        row, column = rng.integers(SIZE - DIGIT_SIZE + 1, size=2)
        place = clip[first : first + 2, row : row + DIGIT_SIZE, column : column + DIGIT_SIZE]
        paint_digit(place, digits[rng.integers(len(digits))], colors[color])
    return np.round(clip).astype(np.uint8), int(odd)


def build_once(directory: epath.Path) -> None:
    """Builds the dataset in ``DATA_DIR/digits_odd/VERSION`` unless it exists.

    It takes seconds and always generates the same examples.

    Raises:
      InputError: scikit-learn is not installed, or the directory is not writable.
    """
    create_directory(directory, _write)


def _write(directory: epath.Path) -> None:
    # TFDS is slow to import.
    from nonlocal_jax.data.datasets._build import FRAMES_FEATURES, build

    material = load_material()
    splits = {split: _examples(split, *split_material(*material, split)) for split in NUM_EXAMPLES}
    build(DATASETS["digits_odd"], splits, directory, FRAMES_FEATURES)


def _examples(split: str, digits: np.ndarray, photos: list[np.ndarray]) -> Iterator[dict[str, Any]]:
    for key, index in shuffled(split, NUM_EXAMPLES[split]):
        # Every example has its own generator, so it does not depend on the others.
        rng = np.random.default_rng((_SEED, list(NUM_EXAMPLES).index(split), index))
        clip, label = draw_example(rng, digits, photos)
        yield {
            "frames": encode_png(clip.reshape(-1, SIZE, 3)),
            "label": label,
            "id": key,
            "num_frames": NUM_FRAMES,
            "height": SIZE,
            "width": SIZE,
        }
