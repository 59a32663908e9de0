"""Writes prepared datasets: array_record files, the metadata of TFDS, and a manifest."""

import contextlib
import io
import os
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from nonlocal_jax.data.datasets import _manifest
from nonlocal_jax.data.datasets._dataset import Dataset
from nonlocal_jax.data.source import IGNORE_INDEX


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder of any dataset of images and label maps."""

    url_infos: ClassVar[dict] = {}  # nothing is downloaded, so there are no checksums

    def __init__(
        self,
        dataset: Dataset,
        version: str,
        splits: Mapping[str, Iterable[Mapping[str, Any]]],
        data_dir: str,
    ):
        self.name = dataset.name
        self.VERSION = tfds.core.Version(version)
        self._dataset = dataset
        self._splits = splits
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.Image(shape=(None, None, 1)),
                    "id": tfds.features.Text(),
                    "height": np.int32,
                    "width": np.int32,
                }
            ),
            metadata=tfds.core.MetadataDict(self._dataset.to_json(), ignore_index=IGNORE_INDEX),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable]:
        del dl_manager
        return {
            split: ((example["id"], example) for example in examples)
            for split, examples in self._splits.items()
        }

    def _generate_examples(self) -> None:
        """The generators of the splits are made above."""


def build(
    dataset: Dataset,
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    directory: epath.Path,
) -> None:
    """Writes a prepared dataset.

    Args:
      dataset: The dataset.
      splits: The examples of each split: "image" and "label" (encoded bytes), "id" (unique in the
        split), "height" and "width". TFDS would need TensorFlow to encode arrays.
      directory: ``DATA_DIR/NAME/VERSION``. It must not exist.
    """
    tfds.disable_progress_bar()
    name, version = directory.parts[-2:]
    assert name == dataset.name
    builder = _Builder(dataset, version, splits, os.fspath(directory.parent.parent))
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    # TFDS reports a download even if nothing is downloaded.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=config)
    examples = {split: info.num_examples for split, info in builder.info.splits.items()}
    _manifest.write(directory, examples)
