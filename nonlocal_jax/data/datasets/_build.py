"""Builds prepared datasets: array_record files, the metadata of TFDS, and a manifest."""

import contextlib
import fcntl
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from nonlocal_jax.data.datasets import _manifest
from nonlocal_jax.data.datasets._dataset import Dataset
from nonlocal_jax.data.source import IGNORE_INDEX
from nonlocal_jax.errors import InputError

_PREFIX = ".building-"


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
    _manifest.write(directory)


@contextlib.contextmanager
def created_once(directory: epath.Path) -> Iterator[epath.Path | None]:
    """Lets one process create ``directory``, which is ``DATA_DIR/NAME/VERSION``.

    Yields a path ``TEMPORARY/NAME/VERSION`` in which the process creates the directory. It is
    renamed on success. Yields None if the directory exists. If another process creates it, this
    process waits. What a killed process left behind is removed.

    Raises:
      InputError: The directory cannot be written.
    """
    parent = directory.parent
    created = [path for path in (parent, parent.parent) if not path.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _lock(parent / f".{directory.name}.lock"):
            for leftover in parent.glob(f"{_PREFIX}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            if directory.exists():
                yield None
                return
            with tempfile.TemporaryDirectory(dir=parent, prefix=_PREFIX) as temporary:
                target = epath.Path(temporary) / parent.name / directory.name
                yield target
                os.rename(target, directory)
    except OSError as error:
        raise InputError(
            f"cannot prepare data in {directory}: {error.strerror or error}; use --data_dir or "
            "NONLOCAL_JAX_DATA to choose a writable directory with enough free space"
        ) from error
    finally:
        for path in created:
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(path)


@contextlib.contextmanager
def _lock(path: epath.Path) -> Iterator[None]:
    """Holds a lock of all processes. The file is removed at the end."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that prepares {path.parent}", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # The process that held the lock has removed its file.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)
    try:
        yield
    finally:
        os.unlink(path)
        os.close(descriptor)
