"""Prepares a dataset from its raw download, or from a folder of images and masks."""

import contextlib
import functools
import itertools
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

from etils import epath

from nonlocal_jax._files import PathLike, as_path
from nonlocal_jax._progress import progress
from nonlocal_jax.data._cores import parallel_map
from nonlocal_jax.data.datasets import (
    _manifest,
    ade20k,
    check_prepared,
    cityscapes,
    folder,
    get_dataset,
    pascal_context,
    voc12aug,
)
from nonlocal_jax.data.datasets._build import build
from nonlocal_jax.data.datasets._dataset import DATASETS, SPLITS, Dataset
from nonlocal_jax.data.datasets._layout import Layout
from nonlocal_jax.data.datasets._location import create_directory, local_directory
from nonlocal_jax.data.datasets._scan import record, scan
from nonlocal_jax.errors import InputError, listing

FOLDER = "folder"
# How to find the files of each dataset, and its numbers of examples.
_READERS: dict[str, Callable[[pathlib.Path], Layout]] = {
    "cityscapes": cityscapes.find,
    "ade20k": ade20k.find,
    "voc12aug": voc12aug.find,
    "pascal_context59": functools.partial(pascal_context.find, num_classes=59),
    "pascal_context60": functools.partial(pascal_context.find, num_classes=60),
}
_COUNTS = {
    "cityscapes": {"train": 2975, "val": 500},
    "ade20k": {"train": 20210, "val": 2000},
    "voc12aug": {"train": 10582, "val": 1449},
    "pascal_context59": {"train": 4998, "val": 5105},
    "pascal_context60": {"train": 4998, "val": 5105},
}
_MAX_PROBLEMS = 1000


class Prepared(NamedTuple):
    """A prepared dataset.

    Attributes:
      dataset: The dataset.
      directory: Its directory, ``DATA_DIR/NAME/VERSION``.
      examples: The number of examples of each split.
      new: Whether it was prepared now.
    """

    dataset: Dataset
    directory: epath.Path
    examples: dict[str, int]
    new: bool


def prepare_dataset(
    kind: str,
    source: PathLike,
    data_dir: PathLike | None = None,
    *,
    name: str | None = None,
    partial: bool = False,
) -> Prepared:
    """Checks all files of a download, and writes the prepared dataset.

    Every file is decoded before anything is written. The images are stored as they are. The label
    maps are stored as gray PNG of class indices and 255. If the dataset is already prepared,
    nothing is done.

    Args:
      kind: Name of the dataset, or "folder".
      source: Directory of the download, or of the folder. See docs/datasets.md for its layout.
      data_dir: Directory of all prepared datasets. Default: ``$NONLOCAL_JAX_DATA`` if it is set,
        else ``~/.cache/nonlocal_jax``.
      name: Name of the new dataset, only for "folder".
      partial: Whether other numbers of examples than those of the published dataset are accepted.

    Raises:
      InputError: The name is invalid, files are missing or damaged, labels or numbers of examples
        are wrong, or the directory is not writable. The message lists all problems. Nothing is
        left in ``data_dir``.
    """
    name = _check_name(kind, name)
    directory = local_directory(name, data_dir)

    def write(target: epath.Path) -> None:
        root = pathlib.Path(as_path(source))
        layout = _find(kind, name, root)
        dataset = _check(layout, name, root, directory, partial=partial)
        _write(dataset, layout, target)

    new = create_directory(directory, write)
    check_prepared(name, directory)
    return Prepared(get_dataset(name, data_dir), directory, _manifest.examples(directory), new)


def _check_name(kind: str, name: str | None) -> str:
    """Returns the name of the dataset."""
    if kind in _READERS:
        if name is not None:
            raise InputError(f"--name is only for {FOLDER}; {kind} keeps its name")
        return kind
    if kind != FOLDER:
        raise InputError(f"{kind!r} cannot be prepared; use {', '.join([*_READERS, FOLDER])}")
    if name is None or not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise InputError(
            f"the name of the dataset is {name!r}; use lower-case letters, digits and underscores, "
            "and begin with a letter: --name=my_data"
        )
    if name in (*DATASETS, FOLDER):
        raise InputError(f"the name {name!r} is reserved; use another --name")
    return name


def _find(kind: str, name: str, source: pathlib.Path) -> Layout:
    """Finds the files of a download."""
    try:
        if not source.is_dir():
            raise InputError(f"there is no directory {source}; use the directory of the download")
        return folder.find(source, name) if kind == FOLDER else _READERS[kind](source)
    except OSError as error:
        raise InputError(
            f"cannot read {error.filename}: {error.strerror}; check the path and its permissions"
        ) from error


def _check(
    layout: Layout, name: str, source: pathlib.Path, directory: epath.Path, *, partial: bool
) -> Dataset:
    """Returns the classes, and raises an InputError that lists everything that is wrong."""
    problems = [*layout.problems, *_duplicates(layout)]
    pairs = [pair for split in SPLITS for pair in layout.splits[split]]
    scanned = parallel_map(functools.partial(scan, layout=layout), pairs)
    facts = list(progress(scanned, len(pairs), "checking"))
    problems += [problem for fact in facts for problem in fact.problems]
    for split in SPLITS:
        number = len(layout.splits[split])
        expected = _COUNTS.get(name, {}).get(split, number)
        if number == 0:
            problems.append(f"{split} has no examples; add at least one")
        elif number != expected and not partial:
            problems.append(
                f"{split} has {number:,} examples instead of {expected:,}; complete the download, "
                "or add --partial to accept this number"
            )
    dataset = layout.dataset
    if dataset is None:
        values = frozenset().union(*(fact.values for fact in facts))
        dataset = folder.classes_from(name, values, problems)
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems):,} problems"
        raise InputError(
            f"{name} was not prepared from {source}: {count}{listing(problems, _MAX_PROBLEMS)}"
        )
    _check_space(directory, sum(fact.size for fact in facts))
    return dataset


def _duplicates(layout: Layout) -> Iterator[str]:
    """Yields a line for every id that occurs more than once."""
    splits: dict[str, list[str]] = {}
    for split in SPLITS:
        for pair in layout.splits[split]:
            splits.setdefault(pair.id, []).append(split)
    for key, found in splits.items():
        if len(found) > 1:
            yield f"{key!r} is in {' and in '.join(found)}; keep it in one of them"


def _check_space(directory: epath.Path, size: int) -> None:
    """Requires enough disk space."""
    free = shutil.disk_usage(directory.parent).free
    if free < size:
        raise InputError(
            f"{directory.parent} has {free / 1e9:.1f} GB of free space, but {size / 1e9:.1f} GB "
            "are needed; use another --data-dir"
        )


def _write(dataset: Dataset, layout: Layout, directory: epath.Path) -> None:
    pairs = [pair for split in SPLITS for pair in layout.splits[split]]
    with contextlib.closing(parallel_map(record, pairs)) as records:
        shown = progress(records, len(pairs), "writing")
        # One split is written after the other.
        splits = {split: itertools.islice(shown, len(layout.splits[split])) for split in SPLITS}
        build(dataset, splits, directory)
