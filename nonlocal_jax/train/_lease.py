"""One run at a time in a work directory of a bucket: an object that its holder renews."""

import contextlib
import datetime
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from typing import Any

import tensorstore

from nonlocal_jax._progress import say
from nonlocal_jax.errors import InputError, first_line

# Seconds between two renewals.
_RENEW = 3.0
# A lease that is not renewed for so many seconds may be that of a process that was killed.
_WATCH = 4.0
_POLL = 0.5
# At the end of a run without network, seconds to wait for each of two requests.
_PATIENCE = 5.0


class Lease:
    """The lease of a run on its work directory.

    The object names the holder. Every write of it has the condition that nobody else has written
    it since it was read, so of several runs that take the lease only one succeeds. The lease is
    over when it was not renewed for ``seconds``. On the same machine it is over when the process
    of the holder is gone.

    Clocks of two hosts are not compared. The holder counts from before its last write, and another
    host from when it saw that write, so the holder is the first for whom the lease is over.

    Args:
      url: The object, such as "gs://bucket/run/.lock".
      seconds: How long the lease is valid after its last renewal.
    """

    def __init__(self, url: str, seconds: float):
        self._store = tensorstore.KvStore.open(url).result()
        self._url = url
        self._holder = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
            "seconds": seconds,
        }
        self._generation = None
        self._renewed = 0.0  # when the last successful write began
        self._other: tuple[bytes, float] | None = None  # generation, and when it was first seen
        self._waits = False
        self._is_taken = False
        self._error = ""  # of the last renewal
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self) -> float:
        """Takes the lease if it is free. Else returns after how many seconds to call this again.

        Raises:
          InputError: Another run holds the lease, and renews it.
        """
        found = self._store.read("").result()
        holder = _parse(found.value)
        generation, now = found.stamp.generation, time.monotonic()
        self._other = self._other or (generation, now)
        is_renewed = generation != self._other[0]
        idle = 0.0 if is_renewed else now - self._other[1]
        if holder is None or _is_over(holder, idle):
            if not self._write(generation):
                return _POLL  # another run was faster
            self._thread.start()
            return 0.0
        if is_renewed or holder["machine"] == self._holder["machine"]:
            raise InputError(in_use(self._url.removesuffix("/.lock"), holder))
        if idle > _WATCH and not self._waits:
            self._waits = True
            say(
                f"process {holder['pid']} on {holder['host']} has not renewed its lease {self._url}"
                f" for {_WATCH:.0f} s; if it was killed, this run starts in "
                f"{holder['seconds'] - idle:.0f} s"
            )
        return _POLL

    def check(self) -> None:
        """Checks that this run still holds the lease.

        Raises:
          InputError: The lease was not renewed in time, or another run has taken it.
        """
        seconds = time.monotonic() - self._renewed
        if self._is_taken:
            reason = "another run has taken it"
        elif seconds > self._holder["seconds"]:
            reason = f"not renewed for {seconds:.0f} s{self._error}"
        else:
            return
        raise InputError(
            f"this run has lost its lease {self._url} ({reason}); this process may have been "
            "suspended or without network; run the same command again to resume, unless another "
            "run uses the work directory"
        )

    def release(self) -> None:
        """Gives the lease up. Without network, it ends by itself."""
        self._released.set()
        self._thread.join(_PATIENCE)
        if not self._thread.is_alive() and not self._is_taken:
            with contextlib.suppress(Exception):
                self._store.write("", None, if_equal=self._generation).result(timeout=_PATIENCE)

    def _write(self, generation: bytes) -> bool:
        """Writes the lease if nobody else has written it. Returns whether it is ours."""
        while True:
            begin = time.monotonic()
            value = json.dumps(self._holder | {"renewed": time.time()})
            written = self._store.write("", value, if_equal=generation).result().generation
            if written:
                self._generation, self._renewed = written, begin
                return True
            # A write whose answer was lost has changed the generation too.
            found = self._store.read("").result()
            if (_parse(found.value) or {}).get("id") != self._holder["id"]:
                return False
            generation = found.stamp.generation

    def _keep(self) -> None:
        while not self._released.wait(_RENEW):
            try:
                self._is_taken = not self._write(self._generation)
                self._error = ""
            except Exception as error:  # the bucket may be back the next time
                self._error = f": {first_line(error)}"
            if self._is_taken:
                return


def in_use(workdir: object, holder: dict[str, Any] | None) -> str:
    """Returns the message for a work directory of another run."""
    of = "" if holder is None else " (process {pid} on {host}, since {since})".format_map(holder)
    return f"another run uses {workdir}{of}; stop it or wait for its end, or use another --workdir"


def _parse(value: bytes) -> dict[str, Any] | None:
    try:
        holder = json.loads(value)
        _ = holder["id"], holder["host"], holder["pid"], holder["machine"], holder["since"]
        _ = holder["renewed"] + holder["seconds"]
    except (ValueError, TypeError, KeyError):
        return None
    return holder


def _is_over(holder: dict[str, Any], idle: float) -> bool:
    """Returns whether a lease that did not change for ``idle`` seconds is over."""
    if holder["machine"] == _machine():
        is_late = time.time() > holder["renewed"] + holder["seconds"]
        return is_late or _is_gone(holder["pid"])
    return idle > holder["seconds"]


def _is_gone(pid: int) -> bool:
    """Returns whether a process of this machine has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # a process of another user
        pass
    return False


def _machine() -> str:
    """Returns a name of what gives processes their numbers: a start of a host, or a container."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return socket.gethostname()
