"""Reads PyTorch's and Caffe2's files and writes PyTorch's, without either of them.

``torch.load(path, weights_only=True)`` reads what ``write`` writes.
"""

import hashlib
import io
import math
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from typing import Any, ClassVar, NamedTuple

import numpy as np
from absl import logging

from nonlocal_jax._files import PathLike
from nonlocal_jax.convert import _unpickle as unpickle
from nonlocal_jax.errors import InputError, listing, printable

# Entries with the state dict: of PyTorch and OpenMMLab, of PySlowFast, of Caffe2.
_NESTED = ("state_dict", "model", "model_state", "blobs")

_STORAGE_NAMES = {dtype: name for name, dtype in unpickle.STORAGE_DTYPES.items()}


# The names of OpenMMLab's files end in the start of a hash of the file.
_HASH = re.compile(r"-([0-9a-f]{8})\.pth$")


def read_state_dict(path: PathLike) -> dict[str, np.ndarray]:
    """Reads the state dict in a file of PyTorch, or the blobs in a file of Caffe2.

    The state dict is the whole content of the file, or its entry "state_dict", "model",
    "model_state" or "blobs". Other entries of the file are ignored. Numbers become arrays.

    Raises:
      InputError: The file cannot be read, is damaged, or its state dict contains anything but
        tensors.
    """
    content = unpickle.read(path)
    _warn_of_wrong_hash(path)
    if isinstance(content, dict):
        nested = (content.get(key) for key in _NESTED)
        content = next((value for value in nested if isinstance(value, dict)), content)
    if not isinstance(content, dict):
        raise InputError(
            f"{path} contains {_describe(content)} instead of a state dict; "
            "in PyTorch, save model.state_dict()"
        )
    content = {
        key: np.asarray(value) if isinstance(value, (int, float, np.generic)) else value
        for key, value in content.items()
    }
    refused = [
        f"{repr(key) if isinstance(key, str) else key.name}: {_describe(value)}"
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, np.ndarray))
    ]
    if refused:
        raise InputError(
            f"the state dict in {path} contains more than tensors:{listing(refused)}\n"
            "in PyTorch, save model.state_dict()"
        )
    return content


def _warn_of_wrong_hash(path: PathLike) -> None:
    """Warns if a file does not have the hash in its name. Most of these files have no checksum."""
    claimed = _HASH.search(os.fspath(path))
    if claimed is None:
        return
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(claimed[1]):
        logging.warning(
            "%s may be damaged: its SHA-256 begins with %s, unlike its name says; download it "
            "again. If that changes nothing, the file was changed after it was named, as some "
            "files of OpenMMLab 1.x were",
            path,
            actual[:8],
        )


def _describe(value: Any) -> str:
    if isinstance(value, unpickle.Placeholder):
        return f"an object of {printable(value.name)}, which is not imported"
    return f"an object of type {type(value).__name__}"


class _Global(NamedTuple):
    """The name of a function or class. Its module need not be installed."""

    module: str
    name: str

    def __call__(self) -> None:
        raise TypeError("only its name is pickled")


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


_REBUILD_TENSOR = _Global("torch._utils", "_rebuild_tensor_v2")


class _Pickler(pickle._Pickler):
    """Pickles arrays as PyTorch pickles tensors: as views of storages outside the pickle."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=2)
        self.arrays: list[np.ndarray] = []

    def persistent_id(self, obj: Any) -> tuple | None:
        if not isinstance(obj, _Storage):
            return None
        storage_type = _Global("torch", _STORAGE_NAMES[obj.dtype])
        return ("storage", storage_type, obj.key, "cpu", obj.size)

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        storage = _Storage(str(len(self.arrays)), obj.dtype, obj.size)
        self.arrays.append(obj)
        strides = tuple(math.prod(obj.shape[i + 1 :]) for i in range(obj.ndim))
        # storage, offset, shape, strides, requires_grad, backward hooks
        return _REBUILD_TENSOR, (storage, 0, obj.shape, strides, False, OrderedDict())

    def _save_global(self, obj: _Global) -> None:
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    dispatch: ClassVar[dict] = {**pickle._Pickler.dispatch, _Global: _save_global}


def write(path: PathLike, content: Any) -> None:
    """Writes plain containers of NumPy arrays in the format of PyTorch 1.6 and newer.

    Equal contents give identical bytes.
    """
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(content)
    records = {"data.pkl": stream.getvalue(), "byteorder": b"little", "version": b"3\n"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
        for key, array in enumerate(pickler.arrays):
            archive.writestr(zipfile.ZipInfo(f"archive/data/{key}"), array.tobytes())
