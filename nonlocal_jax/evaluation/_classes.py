"""The names of a dataset and of its classes, for reports."""

from collections.abc import Mapping
from typing import Any

from nonlocal_jax.data import DATASETS, Dataset, Source


def dataset_classes(source: Source, config: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Returns the names of the dataset and of its classes.

    They are those of the source, or if it has no ``dataset``, those of ``config.data.name``.
    Classes that are not known are numbered.

    Raises:
      InputError: The dataset of the source has another number of classes than the model.
    """
    num_classes, name = config["model"]["num_classes"], config["data"]["name"]
    dataset = getattr(source, "dataset", None)
    if isinstance(dataset, Dataset):
        dataset.check_num_classes(num_classes)
        return dataset.name, dataset.classes
    if name in DATASETS and len(DATASETS[name].classes) == num_classes:
        return name, DATASETS[name].classes
    return getattr(source, "name", name), tuple(map(str, range(num_classes)))
