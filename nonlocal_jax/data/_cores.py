"""The CPU cores that this process may use: their number, and work on all of them."""

import collections
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yields the results in order. One thread per core computes a few of them in advance."""
    # Threads suffice: PIL, OpenCV, zlib and files do not hold Python's global lock.
    threads = usable_cores()
    pool = ThreadPoolExecutor(threads)
    futures: collections.deque = collections.deque()
    try:
        for item in items:
            futures.append(pool.submit(function, item))
            if len(futures) > 2 * threads:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def usable_cores(root: pathlib.Path = pathlib.Path("/")) -> int:
    """Returns the number of CPU cores that this process may use.

    Containers and job schedulers give a process fewer cores than ``os.cpu_count()``: by CPU
    affinity, or by a quota of the control group (cgroup v1 or v2), which is rounded up.

    Args:
      root: Directory that contains ``proc`` and ``sys``, for tests.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _quotas(root))]))


def _quotas(root: pathlib.Path) -> Iterator[float]:
    """Yields the quotas, in cores, of the control group of this process and of those above it."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if not controllers:
            top, read = root / "sys/fs/cgroup", _read_v2
        elif "cpu" in controllers.split(","):
            top, read = root / "sys/fs/cgroup/cpu", _read_v1
        else:
            continue
        directory = top / path.lstrip("/")
        while True:
            try:
                quota, period = read(directory)
                if quota.isdecimal():  # not "max" or "-1"
                    yield int(quota) / int(period)
            except (OSError, ValueError):
                pass  # in a container, the path may be that of the host
            if directory == top:
                break
            directory = directory.parent


def _read_v2(directory: pathlib.Path) -> list[str]:
    return (directory / "cpu.max").read_text().split()


def _read_v1(directory: pathlib.Path) -> list[str]:
    return [(directory / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")]
