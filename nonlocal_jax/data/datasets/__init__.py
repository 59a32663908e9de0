"""The datasets: their classes, and the sources of their examples.

A prepared dataset is the directory ``DATA_DIR/NAME/VERSION``. It contains array_record files, the
metadata of TFDS with the classes and their colors, and a manifest. ``experiments.prepare`` writes
it. ``digits_flag`` and ``digits_odd`` are built when they are first opened.
"""

import difflib
import importlib
import json
import os
import shlex

from etils import epath

from nonlocal_jax._files import PathLike
from nonlocal_jax.data.datasets import _manifest
from nonlocal_jax.data.datasets._dataset import (
    BUILT_ON_USE,
    DATASETS,
    SPLITS,
    Color,
    Dataset,
)
from nonlocal_jax.data.datasets._location import VERSION, default_data_dir, find_directory
from nonlocal_jax.data.source import Source
from nonlocal_jax.errors import InputError

__all__ = ["DATASETS", "Color", "Dataset", "default_data_dir", "get_dataset", "load_source"]


def get_dataset(name: str, data_dir: PathLike | None = None) -> Dataset:
    """Returns the dataset of this name, one of ``DATASETS`` or a folder that was prepared.

    Args:
      name: Name of the dataset.
      data_dir: Directory of all prepared datasets, see ``load_source``.

    Raises:
      InputError: There is no such dataset. The message gives the most similar name.
    """
    if name in DATASETS:
        return DATASETS[name]
    directory = find_directory(name, data_dir)
    check_prepared(name, directory)
    return read_dataset(name, directory)


def load_source(name: str, split: str, data_dir: PathLike | None = None) -> Source:
    """Opens a split of a prepared dataset. The demo datasets are built when they are first opened.

    Args:
      name: Name of the dataset.
      split: Name of the split: "train" or "val".
      data_dir: Directory of all prepared datasets. Default: ``$NONLOCAL_JAX_DATA`` if it is set,
        else ``~/.cache/nonlocal_jax``. A directory in a bucket, such as "gs://bucket/data", is
        copied to each host once.

    Returns:
      The source. It can be pickled. Its attribute ``dataset`` is the ``Dataset``.

    Raises:
      InputError: The dataset or the split is unknown, the dataset is not prepared or is damaged, or
        the directory is not writable.
    """
    if split not in SPLITS:
        raise InputError(f"{name} has no split {split!r}; use {' or '.join(SPLITS)}")
    directory = find_directory(name, data_dir)
    if name in BUILT_ON_USE:
        importlib.import_module(f"{__name__}.{name}").build_once(directory)
    check_prepared(name, directory)
    from nonlocal_jax.data.datasets._records import RecordSource  # TFDS is slow to import

    return RecordSource(read_dataset(name, directory), split, directory, _repair(name, directory))


def check_prepared(name: str, directory: epath.Path) -> None:
    """Requires that a dataset is prepared, and that its files are those of its manifest.

    Raises:
      InputError: The dataset is unknown or not prepared, or a file is missing, is not readable or
        has another size.
    """
    data_dir = directory.parent.parent
    if not directory.exists():
        if name in DATASETS:
            raise InputError(
                f"{name} is not prepared in {data_dir}; run {_command(name, directory)}, or use "
                "another --data-dir"
            )
        names = [*DATASETS, *_prepared(data_dir)]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(names)}."
        raise InputError(
            f"unknown dataset {name!r} in {data_dir}; {hint} Or prepare it with "
            f"{_command(name, directory)}, or use another --data-dir"
        )
    try:
        reason = _manifest.damage(directory)
    except OSError as error:
        raise InputError(
            f"cannot read {error.filename}: {error.strerror}; check its permissions"
        ) from error
    if reason:
        raise InputError(
            f"the data in {directory} is damaged: {reason}; {_repair(name, directory)}"
        )


def read_dataset(name: str, directory: epath.Path) -> Dataset:
    """Reads the classes of a prepared dataset."""
    try:
        return Dataset.from_json(json.loads((directory / "metadata.json").read_bytes()))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the data in {directory} is damaged: metadata.json cannot be read; "
            f"{_repair(name, directory)}"
        ) from error


def _prepared(data_dir: epath.Path) -> list[str]:
    """Returns the names of the prepared folders."""
    directories = data_dir.glob(f"*/{VERSION}")
    names = {directory.parent.name for directory in directories}
    return sorted(names - DATASETS.keys())


def _command(name: str, directory: epath.Path) -> str:
    known = name in DATASETS
    kind = name if known else f"folder --name={name}"
    data_dir = shlex.quote(os.fspath(directory.parent.parent))
    command = f"`python -m experiments.prepare {kind} --source=DIR --data-dir={data_dir}`"
    return command if known else f"{command} (for videos, video_folder instead of folder)"


def _repair(name: str, directory: epath.Path) -> str:
    again = "the command again" if name in BUILT_ON_USE else _command(name, directory)
    return f"delete this directory and run {again} to prepare the data again"
