"""Datasets, checks and augmentation of examples, training batches, and image files."""

from etils import epy

# Imported on first use: the train step needs neither OpenCV nor Grain nor TFDS.
with epy.lazy_api_imports(globals()):
    from nonlocal_jax.data.augment import prepare_example
    from nonlocal_jax.data.checks import check_example, check_image, check_labels
    from nonlocal_jax.data.datasets import (
        DATASETS,
        IGNORE_INDEX,
        Dataset,
        get_dataset,
        load_source,
    )
    from nonlocal_jax.data.digits_flag import DigitsFlag
    from nonlocal_jax.data.images import (
        keep_ratio_size,
        list_images,
        read_image,
        resize_image,
        write_png,
    )
    from nonlocal_jax.data.normalization import normalize
    from nonlocal_jax.data.pipeline import train_batches
    from nonlocal_jax.data.source import Example, Source, fingerprint

__all__ = [
    "DATASETS",
    "IGNORE_INDEX",
    "Dataset",
    "DigitsFlag",
    "Example",
    "Source",
    "check_example",
    "check_image",
    "check_labels",
    "fingerprint",
    "get_dataset",
    "keep_ratio_size",
    "list_images",
    "load_source",
    "normalize",
    "prepare_example",
    "read_image",
    "resize_image",
    "train_batches",
    "write_png",
]
