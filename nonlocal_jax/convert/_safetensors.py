"""Reads and writes ``.safetensors`` files with a model config and a dataset in their metadata."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from nonlocal_jax._files import PathLike, replacing
from nonlocal_jax.errors import InputError, first_line

# Keys of the metadata. The values are JSON.
_CONFIG_KEY = "model_config"
_DATASET_KEY = "dataset"
# Key of the checksum of everything else. Files of early versions have none.
_CHECKSUM_KEY = "sha256"


def read(path: PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Reads the arrays by name, and the model config, or None if there is none.

    Raises:
      InputError: The file cannot be read or is damaged.
    """
    with _opened(path) as file:
        config, _ = _metadata(file)
        keys = file.keys()
        arrays = {key: file.get_tensor(key) for key in keys}
        _check(arrays, file.metadata() or {})
        return arrays, config


def read_metadata(path: PathLike) -> tuple[dict[str, Any] | None, Any]:
    """Reads the model config and the value of the dataset, or None for what there is not.

    Raises:
      InputError: The file cannot be read or is damaged.
    """
    with _opened(path) as file:
        return _metadata(file)


def _metadata(file: safetensors.safe_open) -> tuple[dict[str, Any] | None, Any]:
    metadata = file.metadata() or {}
    if _CONFIG_KEY not in metadata:  # a file of another project
        return None, None
    dataset = json.loads(metadata.get(_DATASET_KEY, "null"))
    return dict(json.loads(metadata[_CONFIG_KEY])), dataset


def _check(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    expected = metadata.get(_CHECKSUM_KEY)
    others = {key: value for key, value in metadata.items() if key != _CHECKSUM_KEY}
    if expected is not None and expected != _checksum(arrays, others):
        raise ValueError("the checksum of its contents is wrong")


def _checksum(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    shapes = [[name, array.dtype.name, array.shape] for name, array in sorted(arrays.items())]
    checksum = hashlib.sha256(json.dumps([shapes, metadata], sort_keys=True).encode())
    for _, array in sorted(arrays.items()):
        checksum.update(np.ascontiguousarray(array).view(np.uint8))
    return checksum.hexdigest()


@contextlib.contextmanager
def _opened(path: PathLike) -> Iterator[safetensors.safe_open]:
    """Yields the open file. Errors of reading it become an ``InputError``."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            yield file
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error}; check the path and its permissions"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise InputError(
            f"{path} is damaged or not a .safetensors file ({first_line(error)}); "
            "download or save it again"
        ) from error


def write(
    path: PathLike,
    arrays: Mapping[str, np.ndarray],
    model_config: Mapping[str, Any],
    dataset: Mapping[str, Any] | None,
) -> None:
    """Writes arrays, a model config, and a dataset unless it is None.

    Raises:
      InputError: The file cannot be written.
    """
    values = {_CONFIG_KEY: dict(model_config), _DATASET_KEY: dataset}
    metadata = {
        key: json.dumps(value, sort_keys=True) for key, value in values.items() if value is not None
    }
    metadata[_CHECKSUM_KEY] = _checksum(arrays, metadata)
    with replacing(path) as partial:
        try:
            safetensors.numpy.save_file(dict(arrays), partial, metadata)
        except safetensors.SafetensorError as error:
            raise InputError(
                f"cannot write {path}: {error}; check the path, its permissions and the free disk "
                "space"
            ) from error
