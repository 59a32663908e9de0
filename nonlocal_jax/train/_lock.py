"""One run at a time in a work directory."""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator

import jax
from absl import logging

from nonlocal_jax._files import PathLike, as_path, try_lock
from nonlocal_jax.errors import InputError

_FILE = ".lock"


@contextlib.contextmanager
def locked(workdir: PathLike) -> Iterator[None]:
    """Locks a work directory. A process that is killed loses its lock.

    Of several processes of a run, only the first one locks.

    Raises:
      InputError: Another run has locked the directory.
    """
    if jax.process_index() > 0:
        yield
        return
    workdir = as_path(workdir)
    path = workdir / _FILE
    with _locked_file(workdir, path) as descriptor:
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        with contextlib.suppress(OSError):  # the disk may be full
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked_file(workdir: PathLike, path: PathLike) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, descriptor)
            is_locked = try_lock(descriptor)
            if is_locked is False:
                raise InputError(
                    f"another run uses {workdir}{_holder(descriptor)}; stop it or wait for its "
                    "end, or use another --workdir"
                )
            if is_locked is None:
                logging.warning("the file system of %s has no locks; do not start two runs", path)
            # The run before may have removed the file after it was opened here.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    break
        yield descriptor


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f" (process {holder['pid']} on {holder['host']}, since {holder['since']})"
    except (ValueError, TypeError, KeyError):  # it is just being written
        return ""
