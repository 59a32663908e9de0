"""Cityscapes: the extracted folders, or the two zips, of https://www.cityscapes-dataset.com."""

import pathlib

from nonlocal_jax.data.datasets._dataset import DATASETS, SPLITS
from nonlocal_jax.data.datasets._layout import (
    File,
    Layout,
    list_files,
    pair,
    value_table,
)

# Label ids of the 19 classes that are evaluated, see labels.py of cityscapesScripts.
_TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_NUM_IDS = 34
_LABEL_IDS = value_table(
    {label_id: index for index, label_id in enumerate(_TRAIN_IDS)},
    ignored=[*range(_NUM_IDS), 255],
)
_LABEL_TRAIN_IDS = value_table({index: index for index in range(len(_TRAIN_IDS))})


def find(source: pathlib.Path) -> Layout:
    """Finds ``leftImg8bit/SPLIT/CITY/ID_leftImg8bit.png`` and ``gtFine/.../ID_gtFine_*.png``.

    Label maps are ``ID_gtFine_labelIds.png``. If one is missing, ``ID_gtFine_labelTrainIds.png`` is
    used.
    """
    problems: list[str] = []
    images, labels = (
        list_files(source, source / folder, problems, archive=f"{folder}_trainvaltest.zip")
        for folder in ("leftImg8bit", "gtFine")
    )
    splits = {}
    for split in SPLITS:
        found = _by_id(images, f"leftImg8bit/{split}/", "_leftImg8bit.png", problems)
        ids = _by_id(labels, f"gtFine/{split}/", "_gtFine_labelIds.png", problems)
        train_ids = _by_id(labels, f"gtFine/{split}/", "_gtFine_labelTrainIds.png", problems)
        pairs = pair(
            found,
            train_ids | ids,
            ("{}_leftImg8bit.png", "{0}_gtFine_labelIds.png or {0}_gtFine_labelTrainIds.png"),
            _LABEL_IDS,
            problems,
        )
        splits[split] = [p if p.id in ids else p._replace(table=_LABEL_TRAIN_IDS) for p in pairs]
    return Layout(
        splits,
        problems,
        DATASETS["cityscapes"],
        f"use label ids from 0 to {_NUM_IDS - 1}, or train ids from 0 to 18 and 255",
    )


def _by_id(files: list[File], prefix: str, suffix: str, problems: list[str]) -> dict[str, File]:
    """Returns the files ``PREFIX/CITY/ID SUFFIX`` by their id."""
    found: dict[str, File] = {}
    for file in files:
        path = pathlib.PurePosixPath(file.name)
        if prefix in file.name and path.name.endswith(suffix):
            key = path.name.removesuffix(suffix)
            if key in found:
                problems.append(f"{found[key].name} and {file.name} have the same id; remove one")
            found[key] = file
    return found
