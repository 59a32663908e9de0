"""Maps functions over files, on several cores."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yields the results in order. Threads compute a few of them in advance."""
    # Threads suffice: PIL, OpenCV, zlib and files do not hold Python's global lock.
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = threads or 1
    pool = ThreadPoolExecutor(threads)
    futures: collections.deque = collections.deque()
    try:
        for item in items:
            futures.append(pool.submit(function, item))
            if len(futures) > 4 * threads:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
