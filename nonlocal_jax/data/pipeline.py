"""From a source to the training batches of one process, with grain."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np

from nonlocal_jax.data.augment import augment
from nonlocal_jax.data.source import Example, Source, check_example
from nonlocal_jax.errors import InputError


class _Augment(grain.transforms.RandomMap):
    def __init__(self, config: Mapping[str, Any]):
        self._config = config

    def random_map(self, element: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        check_example(element)
        image, label = augment(element["image"], element["label"], self._config, rng)
        return {"image": image, "label": label}


def train_batches(
    source: Source,
    config: Mapping[str, Any],
    *,
    seed: int,
    step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Shuffles, augments and batches a source without end.

    The global batch of a step depends on ``source``, ``config``, ``seed`` and the step alone: not
    on the number of processes, nor on where an earlier run stopped. Each epoch has an order of its
    own; batches run across the end of an epoch.

    Args:
      source: random access to examples, see ``nonlocal_jax.data.source``.
      config: ``batch_size``, of all processes together, and the options of ``augment``.
      seed: of order and augmentation.
      step: the first batch to give.
      process_index: of this process.
      process_count: of all processes; each gets its share of every batch.
      num_threads: that read and augment, default one per core up to 8.

    Returns:
      Batches ``{"image": uint8 [b, H, W, 3], "label": uint8 [b, H, W]}``, b = batch_size /
      process_count, H x W the crop.

    Raises:
      InputError: the source is empty, the batch cannot be shared out evenly, or, while reading, an
        example is not as it should be.
    """
    batch_size = config["batch_size"]
    if len(source) == 0:
        raise InputError("the source has no examples")
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"batch_size {batch_size} cannot be shared out evenly among {process_count} processes"
        )
    if num_threads is None:
        num_threads = min(os.cpu_count() or 1, 8)

    # Changing this order changes all random draws, and with them what a resumed run would see.
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    # Before the processes part, so that an example's draws depend on its global index.
    dataset = dataset.random_map(_Augment(config))
    dataset = dataset[process_index::process_count]
    dataset = dataset.batch(batch_size // process_count, drop_remainder=True)
    # An element is a batch by now: grain's own default would hold 500 of them.
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(dataset[step:].to_iter_dataset(options))
