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

import cv2
import numpy as np
from etils import epath

from nonlocal_jax.data.datasets._dataset import DATASETS
from nonlocal_jax.data.datasets.digits_flag import DIGIT_SIZE, load_material, split_material

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
        ink = cv2.resize(
            digits[rng.integers(len(digits))],
            (DIGIT_SIZE, DIGIT_SIZE),
            interpolation=cv2.INTER_LINEAR_EXACT,
        )
        place += (ink / 255)[..., None] * (colors[color] - place)
    return np.round(clip).astype(np.uint8), int(odd)
