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
    def __init__(self, config: Mapping[str, Any], num_classes: int | None):
        self._config = config
        self._num_classes = num_classes

    def random_map(self, element: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        check_example(element, self._num_classes)
        image, label = augment(element["image"], element["label"], self._config, rng)
        return {"image": image, "label": label}


def train_batches(
    source: Source,
    config: Mapping[str, Any],
    *,
    seed: int,
    step: int = 0,
    num_classes: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
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
      num_classes: labels must be below it or 255; None leaves them unchecked.
      shard_index: which part of every batch to give.
      shard_count: how many equal parts there are.
      num_threads: that read and augment, default one per core up to 8.

    Returns:
      Batches ``{"image": uint8 [b, H, W, 3], "label": uint8 [b, H, W]}``, b = batch_size /
      shard_count, H x W the crop.

    Raises:
      InputError: the source is empty, the batch cannot be shared out evenly, or, while reading, an
        example is not as it should be.
    """
    batch_size = config["batch_size"]
    if len(source) == 0:
        raise InputError("the source has no examples")
    if batch_size < 1 or batch_size % shard_count:
        raise InputError(
            f"batch_size {batch_size} cannot be shared out evenly among {shard_count} shards"
        )
    if num_threads is None:
        num_threads = min(os.cpu_count() or 1, 8)

    # Changing this order changes all random draws, and with them what a resumed run would see.
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    # Before the shards part, so that an example's draws depend on its global index.
    dataset = dataset.random_map(_Augment(config, num_classes))
    dataset = dataset[shard_index::shard_count]
    dataset = dataset.batch(batch_size // shard_count, drop_remainder=True)
    # An element is a batch by now: grain's own default would hold 500 of them.
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(dataset[step:].to_iter_dataset(options))
