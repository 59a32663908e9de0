"""Decoded examples in memory-mapped files, which all processes of a host share.

Decoding takes most of the time of an example. ``cached`` decodes each example once. It writes the
arrays to ``DIRECTORY/NAME-FINGERPRINT-DIGEST/data``, and their places and the other fields to
``index.json`` beside it. DIGEST is that of a prepared dataset. Other sources have none.
"""

import contextlib
import errno
import functools
import json
import math
import mmap
import os
import shutil
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from nonlocal_jax._files import PathLike, local_path, make_directory
from nonlocal_jax._interrupt import check_interrupted, until_stopped
from nonlocal_jax._progress import progress
from nonlocal_jax.data._cores import parallel_map
from nonlocal_jax.data._once import create_once
from nonlocal_jax.data.source import Example, Source, fingerprint
from nonlocal_jax.errors import InputError

# Every array starts at a multiple of this number of bytes.
_ALIGNMENT = 64
# The space is checked once, after this number of examples.
_SAMPLE = 16
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cached(source: Source, directory: PathLike) -> Source:
    """Returns a source with the examples of ``source``, read from memory-mapped files.

    If the files do not exist, they are written first, with all cores. If several processes of a
    host call this function, one of them writes and the others wait. The arrays of the examples are
    read-only views of the files. Name and fingerprint of the source do not change.

    A dataset that was prepared again from changed files gets a new cache. For other sources,
    ``fingerprint`` reads only three examples. If others change, delete the directory.

    Args:
      source: The examples. Their fields are arrays, numbers, text or None.
      directory: Directory of all caches, on a disk of this host. It is created if necessary.

    Raises:
      InputError: The disk is full, a field has another type, an example is a video, or the files
        are damaged.
    """
    name = getattr(source, "name", "")
    parts = [*name.split("/"), fingerprint(source), getattr(source, "digest", "")]
    key = "-".join(filter(None, parts))
    path = local_path(directory).absolute() / key
    if not path.exists():  # else the directory may be read-only
        make_directory(directory)
    create_once(path, functools.partial(_write, source, path))
    return _Cached(path, name, getattr(source, "dataset", None))


class _Cached:
    """The examples in a directory that ``_write`` has written."""

    def __init__(self, path: epath.Path, name: str, dataset: Any):
        self.name = name
        self.dataset = dataset
        self._path = path
        try:
            index = json.loads((path / "index.json").read_text())
            self._examples, expected = index["examples"], index["bytes"]
            with open(path / "data", "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != expected:
                    raise ValueError(f"'data' has {size:,} bytes instead of {expected:,}")
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"cannot read the cache {path}: {error}; delete this directory, and it will be "
                "written again"
            ) from error

    def __reduce__(self) -> tuple:
        # A worker process opens the files again.
        return _Cached, (self._path, self.name, self.dataset)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        example = self._examples[index]
        arrays = {
            field: np.frombuffer(self._data, dtype, math.prod(shape), offset).reshape(shape)
            for field, (dtype, shape, offset) in example["arrays"].items()
        }
        return {**example["values"], **arrays}


def _write(source: Source, path: epath.Path, partial: epath.Path) -> None:
    """Writes the cache ``path`` to the empty directory ``partial``."""
    description = f"caching {getattr(source, 'name', '') or 'examples'}"
    index, written = [], 0
    try:
        with (
            open(partial / "data", "wb") as file,
            contextlib.closing(parallel_map(source.__getitem__, range(len(source)))) as examples,
        ):
            for example in until_stopped(progress(examples, len(source), description, "example")):
                entry, written = _append(file, written, example)
                index.append(entry)
                if len(index) == _SAMPLE:
                    file.flush()
                    needed = written * (len(source) - len(index)) // len(index)
                    if needed > shutil.disk_usage(partial).free:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            check_interrupted()
            # Padding, because a file without bytes cannot be mapped.
            written += file.write(bytes(_ALIGNMENT))
            file.flush()
            os.fsync(file.fileno())
        (partial / "index.json").write_text(json.dumps({"bytes": written, "examples": index}))
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        total = written * len(source) // max(len(index), 1)
        raise InputError(
            f"cannot write the cache {path}: {error.strerror}; it needs about {total:,} bytes, so "
            "use a directory on a larger disk"
        ) from error


def _append(file: BinaryIO, written: int, example: Example) -> tuple[dict[str, Any], int]:
    """Appends the arrays of an example to a file with ``written`` bytes.

    Returns:
      The example's entry in the index, and the new number of bytes.
    """
    entry = {"values": {}, "arrays": {}}
    for field, value in example.items():
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            written += file.write(bytes(-written % _ALIGNMENT))
            entry["arrays"][field] = value.dtype.str, value.shape, written
            written += file.write(value.tobytes())
        elif isinstance(value, str | int | float | None):
            entry["values"][field] = value
        elif hasattr(value, "read"):
            raise InputError(
                f"example {example.get('id')!r} is a video, of which only the frames of a clip are "
                "decoded, so data.cache cannot be used; set it to None"
            )
        else:
            raise InputError(
                f"the field {field!r} of example {example.get('id')!r} is of the type "
                f"{type(value).__name__}, but a cache has only arrays, numbers and text; convert "
                "it in the source, or set data.cache to None"
            )
    return entry, written
