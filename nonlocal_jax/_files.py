"""Directories that can be written, and files that appear whole or not at all."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from nonlocal_jax.errors import InputError

PathLike = str | os.PathLike


def make_directory(path: PathLike) -> pathlib.Path:
    """Makes a directory and tries whether it can be written: before the work, not after it.

    Raises:
      InputError: it cannot.
    """
    if not os.fspath(path):
        raise InputError("the name of the directory is empty")
    directory = pathlib.Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write to the directory {path}: {reason}") from error
    return directory


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[pathlib.Path]:
    """Gives a new, empty file beside ``path``, which takes its place if all goes well.

    Raises:
      InputError: the file cannot be written; what was at ``path`` is still there.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors makes files that only their owner may read
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_file(path: PathLike, data: str | bytes) -> None:
    """Writes all of a file; see ``replacing``."""
    with replacing(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: PathLike, value: Any) -> None:
    """Writes JSON, which knows no NaN; see ``replacing``."""
    write_file(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
