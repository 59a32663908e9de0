"""The classes of a dataset, and the table of the known datasets."""

import csv
import dataclasses
import importlib.resources
from collections.abc import Mapping
from typing import Any

from nonlocal_jax.errors import InputError

Color = tuple[int, int, int]

# The splits of every dataset.
SPLITS = ("train", "val")

# Datasets that are generated when they are first opened.
BUILT_ON_USE = ("digits_flag", "digits_odd")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The classes of a dataset.

    Attributes:
      name: Name of the dataset, as in ``config.data.name``.
      classes: Names of the classes. A label is an index into them.
      palette: Colors of the classes, RGB from 0 to 255. Default: those of PASCAL VOC.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...] = ()

    def __post_init__(self) -> None:
        if not self.palette:
            colors = tuple(default_color(index) for index in range(len(self.classes)))
            object.__setattr__(self, "palette", colors)

    def check_num_classes(self, num_classes: int) -> None:
        """Requires a model with as many classes as the dataset.

        Raises:
          InputError: The numbers differ.
        """
        if num_classes != len(self.classes):
            number = len(self.classes)
            raise InputError(
                f"the model predicts {num_classes} classes, but {self.name} has {number}; "
                f"use --config.model.num_classes={number} or another --config.data.name"
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain values for JSON."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "palette": [list(color) for color in self.palette],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Dataset":
        """Returns the dataset that ``to_json`` describes. Other keys are ignored."""
        return cls(
            name=values["name"],
            classes=tuple(values["classes"]),
            palette=tuple((r, g, b) for r, g, b in values["palette"]),
        )


def default_color(index: int) -> Color:
    """Returns a color of the palette of PASCAL VOC: black, dark red, dark green, ..."""
    channels = [0, 0, 0]
    for bit in range(8):
        channels[bit % 3] |= (index >> bit & 1) << 7 - bit // 3
    return tuple(channels)


def _read_classes(name: str) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Reads the classes and the palette, if it has one, from ``class_tables/NAME.csv``."""
    table = importlib.resources.files(__package__) / "class_tables" / f"{name}.csv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    classes = tuple(row["name"] for row in rows)
    colored = [row for row in rows if "r" in row]
    return classes, tuple((int(row["r"]), int(row["g"]), int(row["b"])) for row in colored)


DATASETS: dict[str, Dataset] = {
    name: Dataset(name, *_read_classes(name))
    for name in (
        "cityscapes",
        "ade20k",
        "voc12aug",
        "pascal_context59",
        "pascal_context60",
        "kinetics400",
        "charades",
        *BUILT_ON_USE,
    )
}
