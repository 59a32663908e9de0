"""Creates a directory once, although several processes try to, and some of them are killed."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator

from etils import epath


def create_once(directory: epath.Path, write: Callable[[epath.Path], None]) -> bool:
    """Creates a directory with its files, unless it exists.

    One process calls ``write(TEMPORARY/PARENT/NAME)`` for the directory ``PARENT/NAME``, which
    writes the files to this empty directory. It is renamed on success. Other processes wait. What a
    killed process left behind is removed.

    Returns:
      Whether this call has created the directory.

    Raises:
      OSError: The directory cannot be written.
    """
    if directory.exists():
        return False
    parent = directory.parent
    created = [path for path in (parent, *parent.parents) if not path.exists()]
    prefix = f".{directory.name}.building-"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _lock(parent / f".{directory.name}.lock"):
            for path in parent.iterdir():
                if path.name.startswith(prefix):
                    shutil.rmtree(path, ignore_errors=True)
            if directory.exists():
                return False
            with tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as temporary:
                target = epath.Path(temporary) / parent.name / directory.name
                target.mkdir(parents=True)
                write(target)
                os.rename(target, directory)
            return True
    finally:
        for path in created:
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(path)


@contextlib.contextmanager
def _lock(path: epath.Path) -> Iterator[None]:
    """Holds a lock of all processes. The file is removed at the end."""
    import fcntl  # not on Windows

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that writes {path.parent}", file=sys.stderr)
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
