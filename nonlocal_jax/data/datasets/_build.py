"""Writes prepared datasets: array_record files, the metadata of TFDS, and a manifest."""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from nonlocal_jax.data.datasets import _manifest
from nonlocal_jax.data.datasets._dataset import Dataset
from nonlocal_jax.data.source import IGNORE_INDEX

# Random access needs one example in each group. Compressed images cannot be compressed further.
_OPTIONS = "group_size:1,uncompressed"
_COMMON = {"id": tfds.features.Text(), "height": np.int32, "width": np.int32}
IMAGE_FEATURES = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.Image(shape=(None, None, 1)),
    **_COMMON,
}
# A video with one class; with several, "label" is a list. The other fields are its FrameIndex.
VIDEO_FEATURES = {
    "video": tfds.features.Text(),
    "label": np.int64,
    "num_frames": np.int32,
    "timestamps": tfds.features.Tensor(shape=(None,), dtype=np.int64),
    "key_frames": tfds.features.Tensor(shape=(None,), dtype=np.int64),
    **_COMMON,
}
MULTI_LABEL_FEATURES = {
    **VIDEO_FEATURES,
    "label": tfds.features.Tensor(shape=(None,), dtype=np.int64),
}
# A short video as one PNG, one frame below the other.
FRAMES_FEATURES = {
    "frames": tfds.features.Text(),
    "label": np.int64,
    "num_frames": np.int32,
    **_COMMON,
}
# Bytes of the examples after which a new file begins.
SHARD_SIZE = 256 << 20


def build(
    dataset: Dataset,
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    directory: epath.Path,
    features: Mapping[str, Any] = IMAGE_FEATURES,
) -> None:
    """Writes a prepared dataset.

    The files are written here and not by a TFDS builder, because it shuffles the examples with
    TensorFlow if they have more than a gigabyte.

    Args:
      dataset: The dataset.
      splits: The examples of each split. "id" is unique in the split.
      directory: An empty directory ``NAME/VERSION``.
      features: The fields of an example. Images, label maps and videos are encoded bytes.
    """
    features = tfds.features.FeaturesDict(features)
    name, version = directory.parts[-2:]
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name, tfds.core.Version(version), str(directory), __name__
        ),
        features=features,
        metadata=tfds.core.MetadataDict(dataset.to_json(), ignore_index=IGNORE_INDEX),
    )
    info.set_file_format("array_record")
    checksums = dict.fromkeys(splits, 0)

    def records(split: str) -> Iterator[bytes]:
        for example in splits[split]:
            record = features.serialize_example(example)
            checksums[split] = zlib.crc32(record, checksums[split])
            yield record

    written = [_write_split(name, split, records(split), directory) for split in splits]
    info.set_splits(tfds.core.splits.SplitDict(written))
    info.write_to_directory(directory)
    _manifest.write(directory, {split.name: split.num_examples for split in written}, checksums)


def _write_split(
    name: str, split: str, records: Iterable[bytes], directory: epath.Path
) -> tfds.core.SplitInfo:
    """Writes the shards of a split."""
    lengths, sizes = [], []
    writer = None
    for record in records:
        if writer is None or sizes[-1] >= SHARD_SIZE:
            _close(writer)
            writer = ArrayRecordWriter(str(directory / f"{split}-{len(sizes)}"), _OPTIONS)
            lengths.append(0)
            sizes.append(0)
        _call(writer.write, record)
        lengths[-1] += 1
        sizes[-1] += len(record)
    _close(writer)
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=name, split=split, filetype_suffix="array_record"
    )
    # Only now is the number of shards, which is part of their names, known.
    for index, path in enumerate(template.sharded_filepaths(len(lengths))):
        (directory / f"{split}-{index}").rename(path)
    return tfds.core.SplitInfo(split, lengths, sum(sizes), template)


def _close(writer: ArrayRecordWriter | None) -> None:
    if writer is not None:
        _call(writer.close)


def _call(function: Any, *arguments: Any) -> None:
    try:
        function(*arguments)
    except RuntimeError as error:  # the disk is full, for example
        raise OSError(str(error)) from error
