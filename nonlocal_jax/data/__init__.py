"""Datasets, checks and augmentation of examples, training batches, and image files."""

from typing import TYPE_CHECKING

from nonlocal_jax._lazy import import_on_use
from nonlocal_jax.data.checks import check_example, check_image, check_labels
from nonlocal_jax.data.normalization import normalize
from nonlocal_jax.data.source import IGNORE_INDEX, Example, Source, fingerprint

if TYPE_CHECKING:
    from nonlocal_jax.data.augment import prepare_example
    from nonlocal_jax.data.cache import cached
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

__all__ = [
    "DATASETS",
    "IGNORE_INDEX",
    "Dataset",
    "Example",
    "Source",
    "cached",
    "check_example",
    "check_image",
    "check_labels",
    "fingerprint",
    "get_dataset",
    "keep_ratio_size",
    "list_images",
    "load_source",
    "normalize",
    "prepare_dataset",
    "prepare_example",
    "read_image",
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
        "cached": "cache",
        "get_dataset": "datasets",
        "keep_ratio_size": "images",
        "list_images": "images",
        "load_source": "datasets",
        "prepare_dataset": "datasets.prepare",
        "prepare_example": "augment",
        "read_image": "images",
        "resize_image": "images",
        "train_batches": "pipeline",
        "write_png": "images",
    },
)
