"""Waits for the batches, and measures how long the devices wait with it."""

import concurrent.futures
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

THREAD = "next_batch"
# Seconds between two looks at whether the devices are still computing.
_INTERVAL = 1e-3
# Seconds to wait at the end for a batch that is on its way.
_PATIENCE = 3.0


class NextBatch:
    """Takes the next batch from an iterator in a thread, while the devices compute.

    This is a context manager. On exit it closes the iterator. If the next batch is long in coming,
    it leaves the iterator to the end of the process instead. Python then waits for the thread,
    unless the process ends with ``os._exit``.
    """

    def __init__(self, batches: Iterator[Mapping[str, np.ndarray]]):
        self._batches = batches
        self._thread = concurrent.futures.ThreadPoolExecutor(1, THREAD)
        self._batch: concurrent.futures.Future | None = None

    def __enter__(self) -> "NextBatch":
        return self

    def __exit__(self, *_: object) -> None:
        if self._batch is not None:
            concurrent.futures.wait([self._batch], timeout=_PATIENCE)
        is_done = self._batch is None or self._batch.done()
        self._thread.shutdown(wait=is_done)
        if is_done:
            self._batches.close()

    def take(
        self, running: jax.Array | None, stop: Callable[[], bool] = lambda: False
    ) -> tuple[Mapping[str, np.ndarray], float] | None:
        """Returns the next batch, and for how many seconds the devices had nothing to do.

        Returns None if there is no batch yet and ``stop()`` is true.

        Args:
          running: A result of the last step, which the devices may still compute.
          stop: Whether to stop waiting.
        """
        if self._batch is None:
            self._batch = self._thread.submit(next, self._batches)
        idle_since = None
        while not self._batch.done():
            if stop():
                return None
            if idle_since is None and (running is None or running.is_ready()):
                idle_since = time.monotonic()
            concurrent.futures.wait([self._batch], timeout=_INTERVAL)
        batch = self._batch.result()
        self._batch = self._thread.submit(next, self._batches)
        return batch, 0.0 if idle_since is None else time.monotonic() - idle_since
