"""Clips of videos: which frames and which crops, for training and for evaluation.

The draws are made first, from the number of frames and the size of the video, and then only the
frames of the clip are decoded. Frames are resized by OpenCV's bilinear interpolation. Functions
that draw random numbers take a NumPy ``Generator``. The others are deterministic.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nonlocal_jax.data.images import Window, keep_ratio_size, resize_image, resize_window
from nonlocal_jax.data.source import Example
from nonlocal_jax.data.videos import Video
from nonlocal_jax.errors import InputError

# The aspect ratios of random resized crops, and how often such a crop is drawn.
_ASPECT_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10
# Positions of a window (height, width) in quarters of the free space, in the order of mmaction2:
# corners, center, centers of the sides, centers of the quarters.
_POSITIONS = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
    *((2, 0), (2, 4), (4, 2), (0, 2)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)


def prepare_clip(
    example: Example, config: ConfigDict, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Checks a training example, and draws an augmented clip of its video.

    Args:
      example: ``{"video": a Video, "label": a class or a tuple of classes, "id": str}``.
      config: The config of the experiment, of which ``data``, ``loss.kind`` and
        ``model.num_classes`` are used. See ``draw_frames`` and ``draw_window``.
      rng: The random number generator.

    Returns:
      ``"clip"``: uint8 ``[data.frames, data.crop, data.crop, 3]``. ``"label"``: the class as an
      int32 scalar, or for the loss "sigmoid" 0 and 1 for each class, float32 ``[num_classes]``.

    Raises:
      InputError: The example is invalid, or the video is damaged. The message names the id.
    """
    options = config.data
    label = clip_label(example, config.loss.kind, config.model.num_classes)
    video = example["video"]
    indices = draw_frames(video.num_frames, options, rng)
    short = int(rng.integers(options.short_side[0], options.short_side[1] + 1))
    size = resized_size(video.size, short, options.long_side)
    window = draw_window(size, options, rng)
    flip = rng.random() < options.flip
    frames = [resize_window(frame, size, window) for frame in video.read(indices)]
    crop = (options.crop, options.crop)
    clip = np.stack([f if f.shape[:2] == crop else resize_image(f, crop) for f in frames])
    return {"clip": clip[:, :, ::-1] if flip else clip, "label": label}


def clip_label(example: Example, kind: str, num_classes: int) -> np.ndarray:
    """Checks the fields of an example, and returns its label as an array, see ``prepare_clip``.

    Raises:
      InputError: A field is missing, or the label is wrong. The message names the id.
    """
    if missing := [field for field in ("video", "label", "id") if field not in example]:
        raise InputError(
            f"an example lacks {', '.join(missing)} (it has {', '.join(example) or 'no fields'}); "
            "add each missing field to the source"
        )
    if not hasattr(example["video"], "read"):
        raise InputError(
            f"the video of example {example['id']!r} is of the type "
            f"{type(example['video']).__name__}; use an EncodedVideo or a FrameArray"
        )
    name = f"the labels of example {example['id']!r}"
    labels = np.asarray(example["label"])
    whole = np.issubdtype(labels.dtype, np.integer)
    if labels.size and not (whole and labels.min() >= 0 and labels.max() < num_classes):
        raise InputError(
            f"{name} are {labels.tolist()}; use the class indices 0 to {num_classes - 1}"
        )
    labels = labels.astype(np.int32)
    if kind == "softmax" and labels.ndim:
        raise InputError(f"{name} are {labels.tolist()}; give one class, or use loss.kind=sigmoid")
    if kind == "softmax":
        return labels
    target = np.zeros(num_classes, np.float32)
    target[labels] = 1
    return target


def draw_frames(num_frames: int, config: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Draws the numbers of the frames of a training clip, int ``[frames]``.

    For ``sampling="clip"``, the frames are ``interval`` apart from a random start, modulo the
    number of frames n, so that a short video begins again::

        start ~ U{0, ..., max(0, n - frames interval)}
        i_t = (start + t interval) mod n

    For ``sampling="segments"``, one frame is drawn from each of ``frames`` segments of the video::

        i_t = t floor(n / frames) + U{0, ..., floor(n / frames) - 1}

    and ``i_t = round(t n / frames) mod n`` if the video has fewer frames than that.

    Args:
      num_frames: Number of frames of the video, n in the formulas.
      config: ``sampling``, ``frames`` and ``interval``.
      rng: The random number generator.
    """
    frames = config["frames"]
    if config["sampling"] == "clip":
        start = rng.integers(max(0, num_frames - frames * config["interval"]) + 1)
        return (start + np.arange(frames) * config["interval"]) % num_frames
    length = num_frames // frames
    if length == 0:
        return np.round(np.arange(frames) * (num_frames / frames)).astype(int) % num_frames
    return np.arange(frames) * length + rng.integers(length, size=frames)


def view_frames(num_frames: int, config: Mapping[str, Any]) -> np.ndarray:
    """Returns the numbers of the frames of the evaluation clips, int ``[clips, frames]``.

    Frame t of clip k of a video with n frames is ``(start_k + t interval) mod n``. For K clips::

        starts="wrap":  start_k = floor(k n / K)
        starts="even":  start_k = round(k m / (K - 1)),  m = max(0, n - (frames - 1) interval - 1)

    "even" takes ``floor(m / 2)`` for one clip. ``starts="segments"`` takes the center of each of
    ``frames`` segments, ``floor((t + 1/2) n / frames)``, and has one clip only.

    Args:
      num_frames: Number of frames of the video.
      config: ``data.frames``, ``data.interval``, ``evaluation.clips`` and ``evaluation.starts``.

    Raises:
      InputError: Several clips of segments.
    """
    frames, interval = config["data"]["frames"], config["data"]["interval"]
    clips, kind = config["evaluation"]["clips"], config["evaluation"]["starts"]
    if kind == "segments":
        if clips != 1:
            raise InputError(
                f"evaluation.starts=segments has one clip, but evaluation.clips={clips}; use 1"
            )
        length = num_frames / frames
        return (np.arange(frames) * length + length / 2).astype(int)[None]
    if kind == "wrap":
        starts = np.arange(clips) * num_frames // clips
    else:
        last = max(0, num_frames - (frames - 1) * interval - 1)
        spaced = np.arange(clips) * (last / max(clips - 1, 1))
        starts = np.round(spaced).astype(int) if clips > 1 else np.array([last // 2])
    return (starts[:, None] + np.arange(frames) * interval) % num_frames


def resized_size(size: tuple[int, int], short: int, long_side: str) -> tuple[int, int]:
    """Returns the (height, width) of an image that is resized to a shorter side of ``short``.

    Args:
      size: (height, width) of the image.
      short: The shorter side of the result.
      long_side: Whether the longer side is truncated ("floor") or rounded ("round").
    """
    if long_side == "round":
        return keep_ratio_size(size, (short, math.inf))
    return tuple(n * short // min(size) for n in size)


def draw_window(
    size: tuple[int, int], config: Mapping[str, Any], rng: np.random.Generator
) -> Window:
    """Draws the window of a training clip in its resized frames. It is resized to ``crop`` later.

    By default, the window is a square of ``crop`` pixels at a random place. With ``crop_scales``,
    height and width are ``crop_scales`` times the shorter side, at most ``crop_scale_gap`` apart in
    the list, and the place is one of ``crop_positions``: corners and center, and for 13 positions
    also the centers of the sides and of the quarters (MultiScaleCrop of mmaction2). With
    ``crop_area``, the window covers a part of the frame between these two fractions and has an
    aspect ratio of 3/4 to 4/3 (RandomResizedCrop of mmaction2).

    Args:
      size: (height, width) of the resized frames.
      config: ``crop``, ``crop_scales``, ``crop_positions``, ``crop_scale_gap`` and ``crop_area``.
      rng: The random number generator.

    Raises:
      InputError: The crop is larger than the frames, and not resized.
    """
    if area := config["crop_area"]:
        return _draw_area(size, area, rng)
    crop, scales = config["crop"], config["crop_scales"]
    if crop > min(size) and not scales:
        raise InputError(
            f"data.crop={crop} is larger than frames of {size[1]}x{size[0]} pixels; "
            f"use --config.data.crop={min(size)} or a larger data.short_side"
        )
    if not scales:
        return tuple(_part(int(rng.integers(n - crop + 1)), crop) for n in size)
    sides = [int(min(size) * scale) for scale in scales]
    # As in mmaction2, a side that is almost that of the crop is not resized.
    sides = [crop if abs(side - crop) < 3 and crop <= min(size) else side for side in sides]
    pairs = [
        (height, width)
        for i, height in enumerate(sides)
        for j, width in enumerate(sides)
        if abs(i - j) <= config["crop_scale_gap"]
    ]
    pair = pairs[rng.integers(len(pairs))]
    position = _POSITIONS[rng.integers(config["crop_positions"])]
    return _window(size, pair, position)


def _draw_area(
    size: tuple[int, int], area: tuple[float, float], rng: np.random.Generator
) -> Window:
    """Draws a random resized crop, or takes the central square if ten draws do not fit."""
    ratios = np.exp(rng.uniform(*np.log(_ASPECT_RATIOS), size=_ATTEMPTS))
    areas = rng.uniform(*area, size=_ATTEMPTS) * (size[0] * size[1])
    widths = np.round(np.sqrt(areas * ratios)).astype(int)
    heights = np.round(np.sqrt(areas / ratios)).astype(int)
    for height, width in zip(heights.tolist(), widths.tolist(), strict=True):
        if height <= size[0] and width <= size[1]:
            left, top = (int(rng.integers(n + 1)) for n in (size[1] - width, size[0] - height))
            return _part(top, height), _part(left, width)
    side = min(size)
    return tuple(_part((n - side) // 2, side) for n in size)


def view_windows(size: tuple[int, int], crop: int, crops: int) -> list[tuple[Window, bool]]:
    """Returns the windows of the evaluation crops, and whether each is mirrored.

    1 crop is the center. 3 crops are at the offsets 0, o and 2 o of the longer side, with
    ``o = floor((long - crop) / 2)``, and in the center of the shorter one. 10 crops are the corners
    and the center, each followed by its mirror image.

    Args:
      size: (height, width) of the resized frames.
      crop: Height and width of a crop.
      crops: 1, 3 or 10.

    Raises:
      InputError: The crop is larger than the frames.
    """
    if crop > min(size):
        raise InputError(
            f"evaluation.crop={crop} is larger than frames of {size[1]}x{size[0]} pixels; "
            f"use --config.evaluation.crop={min(size)} or a larger evaluation.short_side"
        )
    if crops == 10:
        windows = [_window(size, (crop, crop), position) for position in _POSITIONS[:5]]
        return [(window, mirrored) for window in windows for mirrored in (False, True)]
    center = [(n - crop) // 2 for n in size]
    longer = int(size[1] >= size[0])
    offsets = [center] if crops == 1 else [[*center] for _ in range(3)]
    for multiple, offset in enumerate(offsets if crops == 3 else ()):
        offset[longer] = multiple * center[longer]
    return [(tuple(_part(start, crop) for start in offset), False) for offset in offsets]


def _window(size: tuple[int, int], extent: tuple[int, int], position: tuple[int, int]) -> Window:
    """Returns the window of this extent at a position, in quarters of the free space."""
    return tuple(
        _part(quarters * ((n - m) // 4), m)
        for n, m, quarters in zip(size, extent, position, strict=True)
    )


def _part(start: int, length: int) -> slice:
    return slice(start, start + length)


def num_views(config: ConfigDict) -> int:
    """Returns the number of views of a video in the evaluation: clips times crops."""
    return config.evaluation.clips * config.evaluation.crops


def read_views(video: Video, config: ConfigDict) -> np.ndarray:
    """Returns all views of a video for the evaluation, clip after clip.

    Args:
      video: The video.
      config: The config of the experiment, of which ``data`` and ``evaluation`` are used. See
        ``view_frames`` and ``view_windows``. Frames are resized to ``evaluation.short_side``.

    Returns:
      uint8 ``[clips * crops, data.frames, crop, crop, 3]`` with ``crop = evaluation.crop``.

    Raises:
      InputError: The video is damaged, or the crop is larger than the frames.
    """
    options = config.evaluation
    numbers = view_frames(video.num_frames, config)
    size = resized_size(video.size, options.short_side, config.data.long_side)
    windows = view_windows(size, options.crop, options.crops)
    # A frame that occurs in several clips is decoded and resized once.
    distinct, places = np.unique(numbers, return_inverse=True)
    frames = np.stack([resize_image(frame, size) for frame in video.read(distinct)])
    shape = (options.clips, len(windows), numbers.shape[1], options.crop, options.crop, 3)
    views = np.empty(shape, np.uint8)
    for view, (window, mirrored) in enumerate(windows):
        crops = frames[:, *window]
        views[:, view] = (crops[:, :, ::-1] if mirrored else crops)[places.reshape(numbers.shape)]
    return views.reshape(-1, *shape[2:])
