"""A folder of images and masks, see docs/datasets.md.

images/ID.jpg or .png    photographs
masks/ID.png             8-bit gray or palette PNG; the value of a pixel stands for its class
classes.csv              optional: the class of each value, its name and its color
train.txt, val.txt       optional: the ids or file names of each split, one in each line
"""

import csv
import pathlib
import re
from collections.abc import Iterable, Set

import numpy as np

from nonlocal_jax.data.datasets._dataset import SPLITS, Color, Dataset, default_color
from nonlocal_jax.data.datasets._layout import (
    File,
    Layout,
    Pair,
    draw_val,
    list_files,
    pair,
    read_list,
    value_table,
)
from nonlocal_jax.data.images import SUFFIXES
from nonlocal_jax.data.source import IGNORE_INDEX

# The name of a row of classes.csv whose value is not a class.
IGNORE = "ignore"
_MAX_NAME = 200
_OTHER_IMAGES = (".bmp", ".gif", ".heic", ".tif", ".tiff", ".webp")


def find(source: pathlib.Path, name: str) -> Layout:
    """Finds the images, the masks, the classes and the splits."""
    problems: list[str] = []
    dataset, table = _read_classes(source, name, problems)
    images = _by_id(source, "images", SUFFIXES, problems)
    masks = _by_id(source, "masks", (".png",), problems)
    names = ("images/{}.jpg or .png", "masks/{}.png")
    lists = {
        split: [
            key if key in images else re.sub(r"\.(png|jpe?g)$", "", key, flags=re.IGNORECASE)
            for key in read_list(source, source / f"{split}.txt", problems)
        ]
        for split in SPLITS
        if (source / f"{split}.txt").exists()
    }
    if lists:
        listed = {key for ids in lists.values() for key in ids}
        for key in sorted(listed - images.keys()):
            problems.append(f"{names[0].format(key)} is missing, but a list contains it; add it")
        if len(lists) == len(SPLITS):  # files that are in neither list are not used
            images = {key: images[key] for key in listed & images.keys()}
            masks = {key: masks[key] for key in listed & masks.keys() & images.keys()}
    pairs = pair(images, masks, names, table, problems)
    splits = _split(pairs, lists)
    hint = "list each value in classes.csv, with the class or with the name 'ignore'"
    return Layout(splits, problems, dataset, hint, upright=True)


def _by_id(
    source: pathlib.Path, folder: str, suffixes: Iterable[str], problems: list[str]
) -> dict[str, File]:
    """Returns the files of a folder by their path in it without the suffix."""
    found: dict[str, File] = {}
    for file in list_files(source, source / folder, problems):
        path = pathlib.PurePosixPath(file.name).relative_to(folder)
        suffix = path.suffix.lower()
        key = path.with_suffix("").as_posix()
        if suffix not in suffixes:
            if suffix in (*SUFFIXES, *_OTHER_IMAGES):
                wanted = " or ".join(suffixes)
                problems.append(f"{file.name} is not a {wanted} file; convert it")
        elif key in found:
            problems.append(f"{found[key].name} and {file.name} have the same id; rename one")
        else:
            found[key] = file
    return found


def _split(pairs: list[Pair], lists: dict[str, list[str]]) -> dict[str, list[Pair]]:
    """Splits the examples by the lists. If one is missing, its split is the rest."""
    lists = lists or {"val": draw_val(p.id for p in pairs)}
    by_id = {p.id: p for p in pairs}
    listed = {key for ids in lists.values() for key in ids}
    return {
        split: [by_id[key] for key in lists[split] if key in by_id]
        if split in lists
        else [p for p in pairs if p.id not in listed]
        for split in SPLITS
    }


def _read_classes(
    source: pathlib.Path, name: str, problems: list[str]
) -> tuple[Dataset | None, np.ndarray]:
    """Reads classes.csv. Without it, returns None and a table that keeps every value."""
    path = source / "classes.csv"
    if not path.exists():
        return None, value_table({value: value for value in range(255)})
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(f"classes.csv cannot be read ({error}); save it as CSV in UTF-8")
        return None, value_table({value: value for value in range(255)})
    columns = dict.fromkeys(key for row in rows for key in row)
    if "name" not in columns or not columns.keys() <= {"value", "name", "color"}:
        problems.append(
            f"classes.csv has the columns {', '.join(map(str, columns)) or 'none'}; write "
            "value,name,color in its first line, as in docs/datasets.md, and separate by commas"
        )
        return None, value_table({value: value for value in range(255)})
    names: list[str] = []
    palette: list[Color] = []
    classes: dict[int, int] = {}
    ignored: set[int] = set()
    for number, row in enumerate(rows):
        line = f"line {number + 2} of classes.csv"
        label = (row["name"] or "").strip()
        text = ((row["value"] or "") if "value" in columns else str(number)).strip()
        value = int(text) if re.fullmatch(r"\d{1,3}", text) else 256
        if value > 255 or value in classes or value in ignored:
            problems.append(f"{line} has the value {text!r}; use a different number from 0 to 255")
        elif label.lower() == IGNORE:
            ignored.add(value)
        elif not label or label in names:
            problems.append(f"{line} has the name {label!r}; give every class its own name")
        elif len(label) > _MAX_NAME or not label.isprintable():  # checkpoints refuse it, too
            problems.append(
                f"{line} has the name {label[:_MAX_NAME]!r}; use at most {_MAX_NAME} printable "
                "characters"
            )
        else:
            classes[value] = len(names)
            names.append(label)
            palette.append(_color(row.get("color"), len(palette), line, problems))
    if not 0 < len(names) <= IGNORE_INDEX:
        problems.append(f"classes.csv has {len(names)} classes; use 1 to {IGNORE_INDEX}")
    table = value_table(classes, ignored | {IGNORE_INDEX})
    return Dataset(name, tuple(names), tuple(palette)), table


def _color(text: str | None, index: int, line: str, problems: list[str]) -> Color:
    text = (text or "").strip()
    if not text:
        return default_color(index)
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        problems.append(f"{line} has the color {text!r}; write it as in #ff8000")
        return default_color(index)
    return tuple(bytes.fromhex(text[1:]))


def classes_from(name: str, values: Set[int], problems: list[str]) -> Dataset:
    """Returns the dataset of a folder without classes.csv, whose masks contain these values.

    The classes are the values 0, 1, ..., and 255 is ignored.
    """
    found = sorted(values - {IGNORE_INDEX})
    if values and (len(found) < 2 or found != list(range(len(found)))):
        listed = ", ".join(map(str, sorted(values)[:20])) + (", ..." if len(values) > 20 else "")
        problems.append(
            f"the masks contain the values {listed}; without classes.csv they must be 0, 1, 2 and "
            "so on, and 255 for ignored pixels; say in classes.csv which class each value is"
        )
    return Dataset(name, tuple(f"class {i}" for i in found))
