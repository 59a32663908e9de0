"""Makes the training batches of one process from a source, with Grain."""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from nonlocal_jax._signals import STOP_SIGNALS
from nonlocal_jax.data._cores import usable_cores
from nonlocal_jax.data.source import Example, Source
from nonlocal_jax.errors import InputError

Batch = dict[str, np.ndarray]

Transform = Callable[[Example, np.random.Generator], Batch]


def train_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    step: int = 0,
    rows: Sequence[int] | None = None,
    num_threads: int | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Returns an infinite iterator of shuffled, transformed batches of a source.

    Row r of the global batch of step k is example ``k * batch_size + r`` of one shuffled stream of
    augmented examples. It depends only on ``source``, ``transform``, ``batch_size``, ``seed``, r
    and k. It does not depend on the number of processes, threads and workers, or on where an
    earlier run stopped. Every epoch has its own order. A batch may contain the end of one epoch and
    the start of the next.

    Call ``close()`` of the iterator after use. It ends the workers.

    Args:
      source: The examples, see ``Source``. Workers get a pickled copy.
      transform: Checks and augments one example: ``(example, rng) -> {name: array}``. Workers get a
        pickled copy.
      batch_size: Size of the global batch, which all processes share.
      seed: Seed of the order and of the augmentation.
      step: The first batch to return.
      rows: Rows of the global batch to return, see ``sharding.process_rows``. Default: all.
      num_threads: Number of threads that read and transform if ``workers`` is 0. Default: one per
        core that this process may use.
      workers: Number of processes that read and transform. 0: threads of this process do it. A
        script that uses workers needs the guard ``if __name__ == "__main__":``, because each worker
        imports the script.

    Returns:
      The batches. Each contains the results of ``transform`` for ``rows``, stacked.

    Raises:
      InputError: The source is empty, or ``batch_size`` or ``rows`` is out of range. The iterator
        raises the errors of ``source`` and ``transform``, also those in a worker.
    """
    if len(source) == 0:
        name = getattr(source, "name", type(source).__name__)
        raise InputError(f"the source {name!r} has no examples; check its directory and its split")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size} is not positive; use at least 1")
    rows = range(batch_size) if rows is None else [int(row) for row in rows]
    if not rows or min(rows) < 0 or max(rows) >= batch_size:
        raise InputError(
            f"rows={rows} are not rows of a batch of {batch_size}; use at least one of 0 to "
            f"{batch_size - 1}"
        )

    # A different order of these calls changes all random draws, so that older runs cannot resume.
    stream = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(transform)
    examples = grain.MapDataset.source(_Rows(stream, batch_size, rows))[step * len(rows) :]
    if workers == 0:
        threads = usable_cores() if num_threads is None else num_threads
        # Grain would buffer 500 elements by default.
        buffer = grain.ReadOptions(threads, max(2 * threads, len(rows)))
        return iter(examples.to_iter_dataset(buffer).batch(len(rows)))
    if not flags.FLAGS.is_parsed():  # Grain reads a flag, also in scripts without absl.app
        flags.FLAGS.mark_as_parsed()
    # A worker makes whole batches, one after the other.
    batches = examples.batch(len(rows)).to_iter_dataset(grain.ReadOptions(0, 0))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return _copies(iter(batches.mp_prefetch(options, worker_init_fn=_prepare_worker)))


class _Rows:
    """The examples of some rows of every batch, batch after batch, as a source."""

    def __init__(self, stream: grain.MapDataset, batch_size: int, rows: Sequence[int]):
        self._stream = stream
        self._batch_size = batch_size
        self._rows = rows

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size * len(self._rows)

    def __getitem__(self, index: int) -> Any:
        step, place = divmod(index, len(self._rows))
        return self._stream[step * self._batch_size + self._rows[place]]


def _copies(batches: grain.DatasetIterator[Batch]) -> Iterator[Batch]:
    """Yields copies of the batches of workers.

    The memory that is shared with a worker is freed as soon as nothing refers to a batch.
    """
    with contextlib.closing(batches):
        try:
            with _signals_blocked():
                first = _copy(next(batches))
            yield first
            yield from map(_copy, batches)
        except InputError as error:
            message = str(error)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):  # the words of Grain
                raise
            message = (
                "a worker process was killed, perhaps because the memory was full; use fewer "
                "data.workers, and run the same command again to resume"
            )
    # The traceback of the error refers to a batch, and a frame of it to the error.
    gc.collect()
    raise InputError(message)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks the signals that stop a run, in this thread and in processes that it starts meanwhile.

    Workers that are starting do not ignore these signals yet, see ``_prepare_worker``.
    """
    resource_tracker.ensure_running()  # it would start now, and unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _copy(batch: Batch) -> Batch:
    return {name: np.array(array) for name, array in batch.items()}


def _prepare_worker(index: int, count: int) -> None:
    """Prepares a process that makes batches."""
    del index, count
    cv2.setNumThreads(0)  # all cores have a worker already
    # Ctrl-C, a closed terminal and job schedulers signal all processes of a job. The main process
    # finishes its step with data of the workers, and then ends them.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker if its parent was killed. It would wait for the parent forever."""
    multiprocessing.parent_process().join()
    os._exit(1)
