"""Datasets, checks and augmentation of examples, training batches, image and video files."""

from typing import TYPE_CHECKING

from nonlocal_jax._lazy import import_on_use
from nonlocal_jax.data.checks import check_example, check_image, check_labels
from nonlocal_jax.data.normalization import normalize
from nonlocal_jax.data.source import IGNORE_INDEX, Example, Source, fingerprint

if TYPE_CHECKING:
    from nonlocal_jax.data.augment import prepare_example
    from nonlocal_jax.data.cache import cached
    from nonlocal_jax.data.clips import num_views, prepare_clip, read_views
    from nonlocal_jax.data.datasets import DATASETS, Dataset, get_dataset, load_source
    from nonlocal_jax.data.datasets.prepare import prepare_dataset
    from nonlocal_jax.data.images import (
        keep_ratio_size,
        list_images,
        read_image,
        resize_image,
        write_png,
    )
    from nonlocal_jax.data.pipeline import train_batches
    from nonlocal_jax.data.videos import EncodedVideo, FrameArray, Video, list_videos

__all__ = [
    "DATASETS",
    "IGNORE_INDEX",
    "Dataset",
    "EncodedVideo",
    "Example",
    "FrameArray",
    "Source",
    "Video",
    "cached",
    "check_example",
    "check_image",
    "check_labels",
    "fingerprint",
    "get_dataset",
    "keep_ratio_size",
    "list_images",
    "list_videos",
    "load_source",
    "normalize",
    "num_views",
    "prepare_clip",
    "prepare_dataset",
    "prepare_example",
    "read_image",
    "read_views",
    "resize_image",
    "train_batches",
    "write_png",
]

# The train step needs neither OpenCV nor Grain nor TFDS.
import_on_use(
    globals(),
    {
        "DATASETS": "datasets",
        "Dataset": "datasets",
        "EncodedVideo": "videos",
        "FrameArray": "videos",
        "Video": "videos",
        "cached": "cache",
        "get_dataset": "datasets",
        "keep_ratio_size": "images",
        "list_images": "images",
        "list_videos": "videos",
        "load_source": "datasets",
        "num_views": "clips",
        "prepare_clip": "clips",
        "prepare_dataset": "datasets.prepare",
        "prepare_example": "augment",
        "read_image": "images",
        "read_views": "clips",
        "resize_image": "images",
        "train_batches": "pipeline",
        "write_png": "images",
    },
)
