"""Reads and writes ``.safetensors`` files with a model config and a dataset in their metadata."""

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from nonlocal_jax._files import PathLike, check_is_file, replacing
from nonlocal_jax.convert._mistaken import damaged
from nonlocal_jax.errors import InputError

# Keys of the metadata. The values are JSON.
_CONFIG_KEY = "model_config"
_DATASET_KEY = "dataset"
# Key of the checksum of everything else. Files of early versions have none.
_CHECKSUM_KEY = "sha256"

# Of the list of all arrays and the metadata. That of a ResNet-101 has 100,000 bytes.
_MAX_HEADER = 2**22

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def read(path: PathLike) -> tuple[dict[str, np.ndarray], Any]:
    """Reads the arrays by name, and the value of the model config, or None if there is none.

    The arrays view the memory-mapped file. A file with a checksum is read whole to check it; of
    others, only the arrays in use are read from disk.

    Raises:
      InputError: The file cannot be read or is damaged.
    """
    with _opened(path) as metadata:
        content = np.memmap(path, np.uint8, "r")
        start = 8 + _header_size(content[:8])
        header = json.loads(content[8:start].tobytes())
        header.pop("__metadata__", None)
        arrays = {}
        for name, entry in header.items():
            begin, end = (start + offset for offset in entry["data_offsets"])
            if entry["dtype"] not in _DTYPES:
                raise ValueError(f"{name} has the unknown type {entry['dtype']}")
            array = content[begin:end].view(_DTYPES[entry["dtype"]])
            arrays[name] = array.view(np.ndarray).reshape(entry["shape"])
        _check(arrays, metadata)
        return arrays, _json(metadata, _CONFIG_KEY)


def read_metadata(path: PathLike) -> tuple[Any, Any]:
    """Reads the values of the model config and the dataset, or None for what there is not.

    Raises:
      InputError: The file cannot be read or is damaged.
    """
    with _opened(path) as metadata:
        if _CONFIG_KEY not in metadata:  # a file of another project
            return None, None
        return _json(metadata, _CONFIG_KEY), _json(metadata, _DATASET_KEY)


def _json(metadata: Mapping[str, str], key: str) -> Any:
    return json.loads(metadata.get(key, "null"))


def _header_size(data: Any) -> int:
    (size,) = struct.unpack("<Q", data)
    if size > _MAX_HEADER:
        raise ValueError(f"a header of {size:,} bytes")
    return size


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
def _opened(path: PathLike) -> Iterator[Mapping[str, str]]:
    """Checks the header and yields the metadata. Errors of reading become an ``InputError``."""
    check_is_file(path)
    try:
        try:
            with open(path, "rb") as file:
                _header_size(file.read(8))
            with safetensors.safe_open(path, "numpy") as checked:
                metadata = checked.metadata() or {}
            yield metadata
        except OSError:
            raise
        except Exception as error:  # a damaged file can raise anything
            raise damaged(path, "a .safetensors file", error) from error
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; check the path and its permissions"
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
