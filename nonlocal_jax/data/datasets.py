"""The table of datasets, with their classes, their colors and their readers.

To add a dataset, write a function that opens one of its splits, and add an entry to ``DATASETS``.
"""

import csv
import dataclasses
import difflib
import importlib.resources
import os
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from nonlocal_jax._files import PathLike, as_path
from nonlocal_jax.data.source import Source
from nonlocal_jax.errors import InputError

Color = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset.

    Attributes:
      name: Name of the dataset, as in ``config.data.name``.
      classes: Names of the classes. A label is an index into them.
      palette: Colors of the classes, RGB from 0 to 255.
      open_split: Maps the name of a split and the directory of all prepared datasets to a source.
        It prepares the dataset if necessary. None if there is no reader yet.
      splits: Names of the splits.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    open_split: Callable[[str, epath.Path], Source] | None = None
    splits: tuple[str, ...] = ("train", "val")

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
        """Returns ``{"name", "classes", "palette"}`` as plain values for JSON."""
        palette = [[int(value) for value in color] for color in self.palette]
        return {"name": self.name, "classes": list(self.classes), "palette": palette}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Dataset":
        """Returns the dataset with the values of ``to_json``."""
        palette = tuple(map(tuple, values["palette"]))
        return cls(values["name"], tuple(values["classes"]), palette)


def _read_classes(name: str) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Reads the classes and the palette from ``class_tables/NAME.csv``."""
    table = importlib.resources.files(__package__) / "class_tables" / f"{name}.csv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    classes = tuple(row["name"] for row in rows)
    return classes, tuple((int(row["r"]), int(row["g"]), int(row["b"])) for row in rows)


def _open_digits_flag(split: str, data_dir: epath.Path) -> Source:
    from nonlocal_jax.data import DigitsFlag, _tfds  # TFDS is slow to import

    source = _tfds.open_split(DigitsFlag, split, data_dir)
    source.dataset = DATASETS["digits_flag"]
    return source


DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset("cityscapes", *_read_classes("cityscapes")),
        Dataset("ade20k", *_read_classes("ade20k")),
        Dataset("voc12aug", *_read_classes("voc12aug")),
        Dataset("digits_flag", *_read_classes("digits_flag"), _open_digits_flag),
    )
}


def get_dataset(name: str) -> Dataset:
    """Returns the dataset of this name, one of ``DATASETS``.

    Raises:
      InputError: There is no such dataset. The message gives the most similar name.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(DATASETS)}"
        raise InputError(f"unknown dataset {name!r}; {hint}")
    return DATASETS[name]


def default_data_dir() -> epath.Path:
    """Returns ``$NONLOCAL_JAX_DATA`` if it is set, else ``~/.cache/nonlocal_jax``."""
    path = os.environ.get("NONLOCAL_JAX_DATA") or "~/.cache/nonlocal_jax"
    return epath.Path(path).expanduser()


def load_source(name: str, split: str, data_dir: PathLike | None = None) -> Source:
    """Opens a split of a dataset. ``digits_flag`` is built when it is first opened.

    Args:
      name: Name of the dataset.
      split: Name of the split: "train" or "val".
      data_dir: Directory of all prepared datasets. Default: ``$NONLOCAL_JAX_DATA`` if it is set,
        else ``~/.cache/nonlocal_jax``.

    Raises:
      InputError: The dataset or the split is unknown, the dataset has no reader yet or cannot be
        read, or the directory is not writable.
    """
    dataset = get_dataset(name)
    if dataset.open_split is None:
        readable = [dataset.name for dataset in DATASETS.values() if dataset.open_split]
        raise InputError(
            f"there is no reader for {name} yet; use {' or '.join(readable)}, or pass your own "
            "nonlocal_jax.data.Source to the functions of the library"
        )
    if split not in dataset.splits:
        raise InputError(f"{name} has no split {split!r}; use {' or '.join(dataset.splits)}")
    return dataset.open_split(split, as_path(data_dir or default_data_dir()))
