"""Data: sources of examples, augmentation, batches, images in files, the embedded dataset."""

from typing import TYPE_CHECKING

from nonlocal_jax import lazy
from nonlocal_jax.data.classes import IGNORE_INDEX, DatasetInfo, get_info
from nonlocal_jax.data.normalization import normalize

if TYPE_CHECKING:
    from nonlocal_jax.data.images import (
        keep_ratio_size,
        list_images,
        read_image,
        resize_image,
        write_png,
    )
    from nonlocal_jax.data.pipeline import train_batches
    from nonlocal_jax.data.source import CheckedSource, Source, fingerprint, load_source

__all__ = [
    "IGNORE_INDEX",
    "CheckedSource",
    "DatasetInfo",
    "Source",
    "fingerprint",
    "get_info",
    "keep_ratio_size",
    "list_images",
    "load_source",
    "normalize",
    "read_image",
    "resize_image",
    "train_batches",
    "write_png",
]

# Normalization, a part of the train step, does without OpenCV, Grain and TFDS.
__getattr__, __dir__ = lazy.names(
    __name__,
    {
        "images": ("keep_ratio_size", "list_images", "read_image", "resize_image", "write_png"),
        "pipeline": ("train_batches",),
        "source": ("CheckedSource", "Source", "fingerprint", "load_source"),
    },
)
