"""Predicts single files: images for segmentation, videos for classification."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nonlocal_jax import visualize
from nonlocal_jax.data import (
    Dataset,
    EncodedVideo,
    normalize,
    read_image,
    read_views,
)
from nonlocal_jax.data.images import MAX_MEGAPIXELS
from nonlocal_jax.data.images import SUFFIXES as IMAGE_SUFFIXES
from nonlocal_jax.data.videos import SUFFIXES as VIDEO_SUFFIXES
from nonlocal_jax.errors import InputError
from nonlocal_jax.evaluation import Predictor, VideoPredictor
from nonlocal_jax.evaluation.classification import quick_config
from nonlocal_jax.models import create_model

Variables = Mapping[str, Any]
Predict = Callable[[pathlib.Path, Any], "Prediction"]

# Overlays of smaller images are enlarged by a whole factor up to this many pixels.
_SMALL = 512
_NUM_SCORES = 5


class Prediction(NamedTuple):
    """The prediction of a file.

    Attributes:
      text: What to print, if it is not empty.
      outputs: The content of each output, by the end of its name: RGB or class indices, uint8
        ``[H, W, 3]`` or ``[H, W]``, or plain values for JSON.
    """

    text: str
    outputs: Mapping[str, np.ndarray | Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class FilePredictor:
    """Predicts files with the published protocol of an experiment.

    Attributes:
      kind: What a file is, such as "image".
      endings: The ends of the names of all outputs for a file.
      suffixes: The suffixes of the files that are taken from a directory.
      read: Reads a file. It is called in several threads, and raises an ``InputError``.
      predict: Maps the variables and the dataset of a checkpoint to a function
        ``(path, content) -> Prediction``.
    """

    kind: str
    endings: tuple[str, ...]
    suffixes: tuple[str, ...]
    read: Callable[[pathlib.Path], Any]
    predict: Callable[[Variables, Dataset], Predict]


def image_predictor(
    config: ConfigDict,
    *,
    multi_scale: bool = False,
    position: Sequence[int] | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> FilePredictor:
    """Returns the predictor of images: their label maps, and overlays with a legend.

    Args:
      config: Config of the experiment.
      multi_scale: Whether to average over scales and flips.
      position: Not for images.
      max_megapixels: Larger images are refused.

    Raises:
      InputError: ``position`` is set.
    """
    if position is not None:
        raise InputError("--position (position) is only for videos; leave it out")
    predictor = Predictor(config, multi_scale=multi_scale)

    def predict(variables: Variables, dataset: Dataset) -> Predict:
        label_map = predictor.label_maps(variables)

        def predict_image(_: pathlib.Path, image: np.ndarray) -> Prediction:
            labels = label_map(image)
            overlay = visualize.color_overlay(image, labels, dataset.palette)
            if (factor := _SMALL // max(labels.shape)) > 1:
                overlay = overlay.repeat(factor, axis=0).repeat(factor, axis=1)
            overlay = visualize.add_legend(overlay, labels, dataset.classes, dataset.palette)
            return Prediction("", {"_labels.png": labels, "_overlay.png": overlay})

        return predict_image

    endings = "_labels.png", "_overlay.png"
    read = functools.partial(read_image, upright=True, max_megapixels=max_megapixels)
    return FilePredictor("image", endings, IMAGE_SUFFIXES, read, predict)


def video_predictor(
    config: ConfigDict,
    *,
    multi_scale: bool = False,
    position: Sequence[int] | None = None,
    max_megapixels: float | None = None,
) -> FilePredictor:
    """Returns the predictor of videos: their best classes, and where one position attends.

    The attention is that of the last block, in the central crop of the clip in the center of the
    video. For a network without non-local blocks, only the frames of this clip are drawn.

    Args:
      config: Config of the experiment.
      multi_scale: Not for videos.
      position: (frame, row, column) in this clip. Default: ``visualize.strongest_position`` for the
        best class.
      max_megapixels: Not for videos.

    Raises:
      InputError: ``multi_scale`` or ``max_megapixels`` is set, or the position is outside of the
        clip.
    """
    for name, value in (("multi_scale", multi_scale), ("max_megapixels", max_megapixels)):
        if value:
            raise InputError(f"--{name} ({name}) is only for images; leave it out")
    central = quick_config(config)
    crop = central.evaluation.crop
    last = config.data.frames - 1, crop - 1, crop - 1
    if position is not None and (
        len(position) != 3 or any(not 0 <= p <= n for p, n in zip(position, last, strict=True))
    ):
        raise InputError(
            f"the position is {tuple(position)}; use a frame, row and column from (0, 0, 0) to "
            f"{last}"
        )
    attends = config.model.get("block", "none") in ("nonlocal", "disentangled_nonlocal")
    block = max(config.model.block_at, key=_order) if attends else None
    predictor = VideoPredictor(config)
    model = create_model(config.model)

    def read(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
        video = EncodedVideo(path)
        return read_views(video, config), read_views(video, central)[0]

    def draw(variables: Variables, frames: np.ndarray, best: int, lines: Sequence[str]):
        clip = normalize(jnp.asarray(frames[None]), config.data.mean, config.data.std)
        ringed = position or visualize.strongest_position(model, variables, clip, best)
        weights = None
        if block is not None:
            name = f"backbone/{block.replace('.', '_')}_block"
            weights = visualize.attention_map(model, variables, clip, ringed, name)
            lines = [
                *lines,
                f"attention of the ringed position in the block at {block}, and the share of each "
                "frame",
            ]
        return ringed, visualize.attention_strip(frames, weights, ringed, *lines)

    def predict(variables: Variables, dataset: Dataset) -> Predict:
        scores_of = predictor(variables)

        def predict_video(path: pathlib.Path, content: tuple[np.ndarray, np.ndarray]) -> Prediction:
            views, frames = content
            scores = next(scores_of([views]))
            if config.evaluation.average == "logits":
                is_softmax = config.loss.kind == "softmax"
                scores = np.asarray((jax.nn.softmax if is_softmax else jax.nn.sigmoid)(scores))
            best = np.argsort(-scores, kind="stable")[:_NUM_SCORES]
            percents = [f"{dataset.classes[c]} {100 * scores[c]:.1f} %" for c in best]
            title = f"{path.name}: {', '.join(percents)}"
            ringed, strip = draw(variables, frames, best[0], [title])
            values = {
                "file": str(path),
                "classes": [{"name": dataset.classes[c], "score": float(scores[c])} for c in best],
                "protocol": predictor.protocol,
                "position": ringed,
                "block": block,
            }
            text = "\n  ".join([str(path), *percents])
            return Prediction(text, {".json": values, "_attention.png": strip})

        return predict_video

    return FilePredictor("video", (".json", "_attention.png"), VIDEO_SUFFIXES, read, predict)


def _order(place: str) -> tuple[int, ...]:
    """Returns the stage and the index of a residual block, such as (3, 1) for "layer3.1"."""
    return tuple(map(int, place.removeprefix("layer").split(".")))
