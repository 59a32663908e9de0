"""Local paths and buckets, writable directories, and files that are written atomically."""

import contextlib
import functools
import importlib.util
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from nonlocal_jax.errors import InputError, first_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PathLike = str | os.PathLike

# How the names of directories with unfinished files end, and the file in them that is locked. Each
# host removes only its own, as the locks of some network file systems hold on one host only.
_PARTIAL = f"@{socket.gethostname()}.nonlocal_jax-partial"
_LOCK = ".lock"


def as_path(path: PathLike) -> epath.Path:
    """Returns a path of the local file system, or of a bucket such as "gs://bucket/run".

    "~" is the home directory. A shell does not expand "~" in --flag=~/path.

    Raises:
      InputError: The path is empty, another URL, or in a bucket, and the package that reads buckets
        is not installed.
    """
    text = os.fspath(path)
    if not text:
        raise InputError("the path is empty; use the path of a file or a directory")
    if is_bucket(text):
        if importlib.util.find_spec("gcsfs") is None:
            raise InputError(
                f"{text} is in a bucket, and gcsfs is not installed; run pip install "
                "'nonlocal_jax[gcs]', or use a local path"
            )
    elif re.match(r"\w{2,}:/", text):  # not the drive of Windows
        raise InputError(f"the path is {text!r}; use gs://BUCKET/PATH or a local path")
    return epath.Path(os.path.expanduser(text))


def local_path(path: PathLike) -> epath.Path:
    """Returns a path of the local file system, see ``as_path``.

    Raises:
      InputError: The path is empty or a URL.
    """
    text = os.fspath(path)
    if re.match(r"\w{2,}:/", text):
        raise InputError(f"the path is {text!r}, but it cannot be in a bucket; use a local path")
    return as_path(path)


def absolute_path(path: PathLike) -> epath.Path:
    """Returns the path that is the same in every working directory, see ``as_path``."""
    path = as_path(path)
    return path if is_bucket(path) else path.absolute()


def is_bucket(path: PathLike) -> bool:
    """Returns whether a path is in a bucket."""
    return os.fspath(path).startswith("gs://")


@contextlib.contextmanager
def bucket_errors(url: object) -> Iterator[None]:
    """Turns an error of reading an object store into an ``InputError``. Others pass."""
    try:
        yield
    except Exception as error:  # each object store has its own errors
        if isinstance(error, InputError) or "://" not in str(url):
            raise
        reason = f"{type(error).__name__}: {first_line(error)}; check the URL and the permissions"
        if isinstance(error, ImportError):
            reason = (
                f"{first_line(error)}; install the package that reads it, such as gcsfs for gs://, "
                "or copy the directory to a local disk"
            )
        raise InputError(f"{url} cannot be read: {reason}") from error


# Names of what is not a file, by its type in ``stat``.
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

    A bucket has no directories; an object is written and removed.

    Raises:
      InputError: The directory cannot be created or is not writable.
    """
    directory = as_path(path)
    with writing(directory, "to the directory "):
        if is_bucket(directory):
            probe = directory / f".writable-{uuid.uuid4().hex}"
            probe.write_bytes(b"")
            probe.unlink()
        else:
            if directory.exists() and not directory.is_dir():
                raise InputError(f"{path} is a file; use a directory")
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
    return directory


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[epath.Path]:
    """Yields a new, empty file, and renames it to ``path`` on success, once it is on the disk.

    Until then the file is in a hidden directory next to ``path``. If the process is killed, the
    next process that writes a file there removes this directory. A file for a bucket is in a
    temporary directory of this host, and is then uploaded as a whole.

    Raises:
      InputError: The file cannot be written. The old file, if any, is unchanged.
    """
    path = as_path(path)
    if is_bucket(path):
        with tempfile.TemporaryDirectory() as directory:
            partial = epath.Path(directory) / path.name
            partial.touch()
            yield partial
            write_file(path, partial.read_bytes())
        return
    with writing(path):
        _remove_abandoned(path.parent)
        with _partial_directory(path) as directory:
            partial = directory / path.name
            partial.touch()
            mode = os.stat(partial).st_mode
            yield partial
            os.chmod(partial, mode)  # safetensors creates files that only their owner can read
            _sync(partial)
            os.replace(partial, path)
            with contextlib.suppress(OSError):  # some file systems cannot sync directories
                _sync(path.parent, os.O_RDONLY)


@contextlib.contextmanager
def _partial_directory(path: epath.Path) -> Iterator[epath.Path]:
    """Yields a new directory next to ``path``. It is locked as long as this process lives."""
    with contextlib.ExitStack() as stack:
        while True:
            directory = epath.Path(tempfile.mkdtemp(_PARTIAL, ".", path.parent))
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            lock = directory / _LOCK
            # Until it is locked, another process can take the directory for abandoned.
            with contextlib.suppress(FileNotFoundError):
                descriptor = stack.enter_context(_opened(lock, os.O_RDWR | os.O_CREAT))
                if try_lock(descriptor) is not False and lock.exists():
                    break
        yield directory


@functools.cache  # a directory may have many files
def _remove_abandoned(directory: epath.Path) -> None:
    """Removes the partial directories of processes that were killed."""
    for name in os.listdir(directory):
        if name.startswith(".") and name.endswith(_PARTIAL):
            with contextlib.suppress(OSError):  # has a lock, unless the process was killed before
                os.rmdir(directory / name)
            lock = directory / name / _LOCK
            with contextlib.suppress(OSError), _opened(lock, os.O_RDWR) as descriptor:
                if try_lock(descriptor):
                    shutil.rmtree(directory / name)


def try_lock(descriptor: int) -> bool | None:
    """Locks an open file, until it is closed or the process ends.

    Returns False if another process has locked it, and None if there are no locks here.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def _opened(path: PathLike, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync(path: PathLike, flags: int = os.O_RDWR) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    with _opened(path, flags) as descriptor:
        os.fsync(descriptor)


def append_line(path: PathLike, line: str) -> None:
    """Appends a line to a file.

    Raises:
      InputError: The file cannot be written.
    """
    with writing(path), open(path, "a") as file:
        file.write(line + "\n")


@contextlib.contextmanager
def writing(path: PathLike, what: str = "") -> Iterator[None]:
    """Turns an error of writing a path into an ``InputError``."""
    try:
        yield
    except Exception as error:
        # The libraries of object stores have errors of their own.
        is_expected = isinstance(error, OSError) or is_bucket(path)
        if isinstance(error, InputError) or not is_expected:
            raise
        reason = getattr(error, "strerror", None) or first_line(error) or type(error).__name__
        raise InputError(
            f"cannot write {what}{path}: {reason}; check the path, its permissions and the free "
            "disk space"
        ) from error


def write_file(path: PathLike, data: str | bytes) -> None:
    """Writes a file atomically, see ``replacing``. An object in a bucket is always whole."""
    data = data.encode() if isinstance(data, str) else data
    path = as_path(path)
    if is_bucket(path):
        with writing(path):
            path.write_bytes(data)
        return
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_json(path: PathLike, value: Any) -> None:
    """Writes strict JSON, without NaN, atomically."""
    write_file(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
