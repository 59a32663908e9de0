"""What an evaluation asks its source: the names of the classes, and the examples of a process."""

from collections.abc import Mapping
from typing import Any

import grain
import jax

from nonlocal_jax.data import DATASETS, Dataset, Source
from nonlocal_jax.data.source import check_source
from nonlocal_jax.errors import InputError


def dataset_classes(source: Source, config: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Returns the names of the dataset and of its classes.

    They are those of the source, or if it has no ``dataset``, those of ``config.data.name``.
    Classes that are not known are numbered.

    Raises:
      InputError: The source has no random access, or its dataset has another number of classes than
        the model.
    """
    check_source(source)
    num_classes, name = config["model"]["num_classes"], config["data"]["name"]
    dataset = getattr(source, "dataset", None)
    if isinstance(dataset, Dataset):
        dataset.check_num_classes(num_classes)
        return dataset.name, dataset.classes
    if name in DATASETS and len(DATASETS[name].classes) == num_classes:
        return name, DATASETS[name].classes
    return getattr(source, "name", name), tuple(map(str, range(num_classes)))


def examples_of_process(source: Source, *, together: bool) -> grain.MapDataset:
    """Returns the examples that this process evaluates: every n-th one for n processes.

    Args:
      source: All examples.
      together: Whether the processes work on each example together, so that each has all of them.

    Raises:
      InputError: There are no examples.
    """
    if not len(source):
        raise InputError(
            f"the source {getattr(source, 'name', type(source).__name__)!r} has no examples; "
            "check its directory and its split"
        )
    examples = grain.MapDataset.source(source)
    return examples if together else examples[jax.process_index() :: jax.process_count()]
