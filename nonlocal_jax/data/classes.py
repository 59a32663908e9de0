"""Classes and colors of the datasets."""

import csv
import dataclasses
import difflib
import functools
import importlib.resources

from nonlocal_jax.errors import InputError

# Label of the pixels that count neither in training nor in evaluation.
IGNORE_INDEX = 255
DATASETS = ("cityscapes", "ade20k", "voc12aug", "digits_flag")


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What the labels of a dataset mean.

    Attributes:
      name: of the dataset.
      classes: names of the classes; the label of a pixel is an index into them.
      palette: the classes' colors, RGB from 0 to 255.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def check_num_classes(self, num_classes: int) -> None:
        """Refuses a model of another number of classes with an ``InputError``."""
        if num_classes != self.num_classes:
            raise InputError(
                f"the network tells {num_classes} classes apart, {self.name} has "
                f"{self.num_classes}: set model.num_classes or data.name"
            )


@functools.cache
def get_info(name: str) -> DatasetInfo:
    """Gives the classes of one of ``DATASETS``.

    Raises:
      InputError: the dataset is unknown; the message gives the nearest known one.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(DATASETS)}"
        raise InputError(f"no dataset {name!r}: {hint}")
    table = importlib.resources.files(__package__) / "class_tables" / f"{name}.csv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    return DatasetInfo(
        name=name,
        classes=tuple(row["name"] for row in rows),
        palette=tuple((int(row["r"]), int(row["g"]), int(row["b"])) for row in rows),
    )
