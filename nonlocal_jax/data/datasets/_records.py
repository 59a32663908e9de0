"""Prepared datasets as sources."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from nonlocal_jax.data.datasets import _manifest
from nonlocal_jax.data.datasets._dataset import Dataset
from nonlocal_jax.data.images import decode_image, decode_label
from nonlocal_jax.data.source import Example
from nonlocal_jax.data.videos import EncodedVideo, FrameArray, FrameIndex
from nonlocal_jax.errors import InputError

# What array_record raises if a file is missing, truncated or corrupt.
_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError)


class RecordSource:
    """Random access to the examples of a split of a prepared dataset.

    The images are decoded here, because TFDS applies the EXIF orientation. Videos are not decoded
    yet. A source can be pickled. Its copy opens the files again.

    Attributes:
      name: Name of the dataset and of the split, such as "digits_flag/train".
      dataset: The dataset.
      digest: Short hash of the manifest. It is different if any example is.
    """

    def __init__(self, dataset: Dataset, split: str, directory: epath.Path, repair: str):
        """Opens a split.

        Args:
          dataset: The dataset.
          split: Name of the split.
          directory: ``DATA_DIR/NAME/VERSION``.
          repair: What the user must do if a file is damaged.

        Raises:
          InputError: The files are damaged.
        """
        self.name = f"{dataset.name}/{split}"
        self.dataset = dataset
        self.digest = _manifest.digest(directory)
        self._arguments = (dataset, split, directory, repair)
        try:
            builder = tfds.builder_from_directory(directory)
            skip = tfds.decode.SkipDecoding()
            images = ("image", "label") if "image" in builder.info.features else ()
            self._records: Any = builder.as_data_source(split, decoders=dict.fromkeys(images, skip))
        except Exception as error:  # TFDS raises errors of many types for a damaged file
            raise self._damaged(error) from error

    def __reduce__(self) -> tuple:
        return RecordSource, self._arguments

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        try:
            record = self._records[index]
        except _DAMAGE as error:
            raise self._damaged(error) from error
        name = record["id"].decode()
        if "image" not in record:
            return _video_example(record, name)
        return {
            "image": decode_image(record["image"], f"the image of {name!r}"),
            "label": decode_label(record["label"], f"the label of {name!r}"),
            "id": name,
        }

    def _damaged(self, error: Exception) -> InputError:
        _, _, directory, repair = self._arguments
        reason = f"{type(error).__name__}: {error}"
        return InputError(f"the data in {directory} is damaged: {reason}; {repair}")


def _video_example(record: Mapping[str, Any], name: str) -> Example:
    size = int(record["height"]), int(record["width"])
    label = record["label"]
    if "frames" in record:
        frames = decode_image(record["frames"], f"the video of {name!r}")
        video = FrameArray(frames.reshape(-1, *size, 3))
    else:
        index = FrameIndex(record["timestamps"], record["key_frames"], size)
        video = EncodedVideo(record["video"], f"the video of {name!r}", index)
    return {
        "video": video,
        "label": tuple(label.tolist()) if np.ndim(label) else int(label),
        "id": name,
        "num_frames": int(record["num_frames"]),
        "height": size[0],
        "width": size[1],
    }
