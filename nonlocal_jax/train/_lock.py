"""One run at a time in a work directory."""

import contextlib
import datetime
import json
import os
import socket
import time
from collections.abc import Callable, Iterator

from absl import logging

from nonlocal_jax import distributed
from nonlocal_jax._files import (
    PathLike,
    as_path,
    bucket_errors,
    check_is_file,
    is_bucket,
    try_lock,
)
from nonlocal_jax.errors import InputError
from nonlocal_jax.train._lease import Lease, in_use

_FILE = ".lock"


@contextlib.contextmanager
def locked(
    workdir: PathLike, stop_requested: Callable[[], bool] = lambda: False
) -> Iterator[Callable[[], None]]:
    """Locks a work directory. A process that is killed loses its lock.

    Of several processes of a run, only the first one locks. In a bucket it holds a ``Lease``, and
    yields a function that raises an ``InputError`` if it has lost it. If the holder of the lease is
    on another host and may have been killed, this waits until the lease is over.

    Args:
      workdir: The directory.
      stop_requested: Whether to stop waiting. All processes call it equally often.

    Raises:
      InputError: Another run has locked the directory, or the wait was stopped. All processes raise
        it.
    """
    workdir = as_path(workdir)
    if not is_bucket(workdir):
        with contextlib.ExitStack() as stack:
            distributed.from_first(lambda: stack.enter_context(_locked_file(workdir)))
            yield lambda: None
        return
    lease = None

    def acquire() -> float:
        nonlocal lease
        with bucket_errors(workdir):
            # If the first process is killed, the others end one heartbeat timeout later.
            lease = lease or Lease(f"{workdir}/{_FILE}", 2 * distributed.heartbeat_timeout())
            return lease.acquire()

    # Each call returns soon, because the other processes cannot wait for minutes.
    while wait := distributed.from_first(acquire):
        time.sleep(wait)
        if stop_requested():
            raise InputError(
                f"stopped by a signal while waiting for the end of another run in {workdir}; run "
                "the same command again to resume"
            )
    if lease is None:  # not the first process
        yield lambda: None
        return
    try:
        yield lease.check
    finally:
        lease.release()


@contextlib.contextmanager
def _locked_file(workdir: PathLike) -> Iterator[None]:
    path = workdir / _FILE
    with _opened(workdir, path) as descriptor:
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
def _opened(workdir: PathLike, path: PathLike) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        while True:
            if path.exists():
                check_is_file(path)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, descriptor)
            is_locked = try_lock(descriptor)
            if is_locked is False:
                raise InputError(in_use(workdir, _holder(descriptor)))
            if is_locked is None:
                logging.warning("the file system of %s has no locks; do not start two runs", path)
            # The run before may have removed the file after it was opened here.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    break
        yield descriptor


def _holder(descriptor: int) -> dict[str, object] | None:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return {name: holder[name] for name in ("host", "pid", "since")}
    except (ValueError, TypeError, KeyError):  # it is just being written
        return None
