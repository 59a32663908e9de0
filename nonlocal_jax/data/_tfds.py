"""Prepared TFDS datasets as sources."""

import contextlib
import io
import os
import tempfile
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from nonlocal_jax.data.images import decode_image, decode_label
from nonlocal_jax.data.source import Example
from nonlocal_jax.errors import InputError

# What TFDS and array_record raise if a file is missing, truncated or corrupt.
_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError)


def _damaged(directory: epath.Path, error: Exception) -> InputError:
    return InputError(
        f"cannot read the data in {directory}: {type(error).__name__}: {error}; delete this "
        "directory and run the command again to prepare the data again"
    )


class _TfdsSource:
    """Random access to the examples of a split.

    The images are decoded here, because TFDS applies the EXIF orientation.

    Attributes:
      name: Name and split of the dataset, such as "digits_flag/train".
    """

    def __init__(self, records: Any, directory: epath.Path, name: str):
        self._records = records
        self._directory = directory
        self.name = name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        try:
            record = self._records[index]
        except _DAMAGE as error:
            raise _damaged(self._directory, error) from error
        name = record["id"].decode()
        return {
            "image": decode_image(record["image"], f"the image of {name!r}"),
            "label": decode_label(record["label"], f"the label of {name!r}"),
            "id": name,
        }


def open_split(
    builder: type[tfds.core.GeneratorBasedBuilder], split: str, data_dir: epath.Path
) -> _TfdsSource:
    """Opens a split of a dataset of images and label maps, and builds the dataset if necessary.

    Args:
      builder: Class of the TFDS builder. Its features include "image", "label" and "id".
      split: Name of the split.
      data_dir: Directory of all prepared datasets.

    Raises:
      InputError: The prepared data cannot be read, or the directory is not writable.
    """
    directory = data_dir / builder.name / str(builder.VERSION)
    if not directory.exists():
        _build(builder, directory)
    try:
        skip = tfds.decode.SkipDecoding()
        records = tfds.builder_from_directory(directory).as_data_source(
            split, decoders={"image": skip, "label": skip}
        )
    except _DAMAGE as error:
        raise _damaged(directory, error) from error
    return _TfdsSource(records, directory, f"{builder.name}/{split}")


def _build(builder: type[tfds.core.GeneratorBasedBuilder], directory: epath.Path) -> None:
    """Builds the dataset in a temporary directory and renames the directory.

    If several processes build at the same time, the result of the first one is kept.
    """
    tfds.disable_progress_bar()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".building-") as temporary:
            built = builder(data_dir=temporary, file_format="array_record")
            config = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=1)
            # TFDS reports a download even if nothing is downloaded.
            with contextlib.redirect_stdout(io.StringIO()):
                built.download_and_prepare(download_config=config)
            try:
                os.rename(built.data_dir, directory)
            except OSError:
                if not directory.exists():
                    raise
    except OSError as error:
        raise InputError(
            f"cannot prepare data in {directory}: {error.strerror or error}; use --data_dir or "
            "NONLOCAL_JAX_DATA to choose a writable directory"
        ) from error
