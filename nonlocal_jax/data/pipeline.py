"""Makes the training batches of one process from a source, with Grain."""

import os
from collections.abc import Callable, Iterator

import grain
import numpy as np

from nonlocal_jax.data.source import Example, Source
from nonlocal_jax.errors import InputError

Transform = Callable[[Example, np.random.Generator], dict[str, np.ndarray]]


def train_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    step: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
    num_threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns an infinite iterator of shuffled, transformed batches of a source.

    The global batch of a step depends only on ``source``, ``transform``, ``batch_size``, ``seed``
    and the step. It does not depend on the number of processes or on where an earlier run stopped.
    Every epoch has its own order. A batch may contain the end of one epoch and the start of the
    next.

    Args:
      source: The examples, see ``Source``.
      transform: Checks and augments one example: ``(example, rng) -> {name: array}``.
      batch_size: Size of the global batch, which all processes share.
      seed: Seed of the order and of the augmentation.
      step: The first batch to return.
      shard_index: Index of the part of every batch to return.
      shard_count: Number of equal parts.
      num_threads: Number of threads that read and transform. Default: one per core, up to 8.

    Returns:
      The batches. Each contains ``batch_size / shard_count`` results of ``transform``, stacked.

    Raises:
      InputError: The source is empty, or the batch cannot be split evenly.
    """
    if len(source) == 0:
        name = getattr(source, "name", type(source).__name__)
        raise InputError(f"the source {name!r} has no examples; check its directory and its split")
    if batch_size < 1 or batch_size % shard_count:
        raise InputError(
            f"batch_size={batch_size} cannot be split into {shard_count} equal parts; "
            f"use a positive multiple of {shard_count}"
        )
    if num_threads is None:
        num_threads = min(os.cpu_count() or 1, 8)

    # A different order of these calls changes all random draws, so that older runs cannot resume.
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    # Before the split into shards: the draws of an example depend on its global index.
    dataset = dataset.random_map(transform)
    dataset = dataset[shard_index::shard_count]
    dataset = dataset.batch(batch_size // shard_count, drop_remainder=True)
    # An element is a batch here: Grain would buffer 500 of them by default.
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(dataset[step:].to_iter_dataset(options))
