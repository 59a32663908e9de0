"""Local paths, writable directories, and files that are written atomically."""

import contextlib
import json
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from etils import epath

from nonlocal_jax.errors import InputError

PathLike = str | os.PathLike


def as_path(path: PathLike) -> epath.Path:
    """Returns a path of the local file system. "~" is the home directory.

    A shell does not expand "~" in --flag=~/path.

    Raises:
      InputError: The path is empty, or it is a URL such as "gs://bucket/run".
    """
    text = os.fspath(path)
    if not text:
        raise InputError("the path is empty; use the path of a file or a directory")
    if "://" in text:
        raise InputError(
            f"the path is {text!r}, but object stores are not supported yet; use a local path"
        )
    return epath.Path(os.path.expanduser(text))


# What is not a file, as ``stat`` tells it apart.
_NOT_FILES = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_is_file(path: PathLike) -> None:
    """Requires a file. Call this before opening one, as opening a pipe waits for its other end.

    Raises:
      InputError: The file does not exist or cannot be looked at, or it is something else, such as a
        directory, a named pipe or a device.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; check the path and its permissions"
        ) from error
    if kind != stat.S_IFREG:
        raise InputError(
            f"cannot read {path}: it is {_NOT_FILES.get(kind, 'something else')}, not a file; use "
            "the path of a file"
        )


def make_directory(path: PathLike) -> epath.Path:
    """Creates a directory and checks that it is writable. Call this before long computations.

    Raises:
      InputError: The directory cannot be created or is not writable.
    """
    directory = as_path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"cannot write to the directory {path}: {reason}; check the path, its permissions and "
            "the free disk space"
        ) from error
    return directory


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[epath.Path]:
    """Yields a new, empty file next to ``path``, and renames it to ``path`` on success.

    Raises:
      InputError: The file cannot be written. The old file, if any, is unchanged.
    """
    path = as_path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        partial.touch()
        mode = os.stat(partial).st_mode
        yield partial
        os.chmod(partial, mode)  # safetensors creates files that only their owner can read
        os.replace(partial, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; check the path, its permissions and "
            "the free disk space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_file(path: PathLike, data: str | bytes) -> None:
    """Writes a file atomically, see ``replacing``."""
    with replacing(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: PathLike, value: Any) -> None:
    """Writes strict JSON, without NaN, atomically."""
    write_file(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
