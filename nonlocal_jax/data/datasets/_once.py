"""Creates a directory once, although several processes try to, and some of them are killed."""

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

from etils import epath

from nonlocal_jax.errors import InputError

_PREFIX = ".building-"


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
    created = [path for path in (parent, *parent.parents) if not path.exists()]
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
