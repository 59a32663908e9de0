"""The files of a download, and the examples that they form."""

import csv
import dataclasses
import hashlib
import os
import pathlib
import zipfile
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from nonlocal_jax.data.datasets._dataset import Dataset
from nonlocal_jax.data.source import IGNORE_INDEX
from nonlocal_jax.data.videos import SUFFIXES

# In a table of values: the value must not occur.
INVALID = -1


class File(NamedTuple):
    """A file of a directory or of a zip archive.

    Attributes:
      name: How messages call the file: its path relative to the source directory.
      path: Path of the file, or its name in the archive.
      archive: The archive.
    """

    name: str
    path: pathlib.Path | str
    archive: zipfile.ZipFile | None = None

    def read(self) -> bytes:
        """Returns the content. Raises OSError or zipfile.BadZipFile."""
        if self.archive is not None:
            return self.archive.read(str(self.path))
        return pathlib.Path(self.path).read_bytes()


class Pair(NamedTuple):
    """An example: the files of its image and of its label map.

    Attributes:
      id: Identifier, unique in the dataset.
      image: PNG or JPEG file.
      label: PNG file, or .mat file of the Semantic Boundaries Dataset.
      table: Maps the values of the label file to classes: int16 ``[256]``, see ``value_table``.
    """

    id: str
    image: File
    label: File
    table: np.ndarray


class VideoFile(NamedTuple):
    """An example: the file of a video and its label.

    Attributes:
      id: Identifier, unique in the dataset.
      file: The video.
      label: Its class, or all of its classes.
    """

    id: str
    file: File
    label: int | tuple[int, ...]


@dataclasses.dataclass
class Layout:
    """The examples of a download.

    Attributes:
      splits: The examples of each split: all are of the same type.
      problems: What is wrong with the download, one line each.
      dataset: The classes. None if they must be found in the labels.
      advice: What to do if a label contains other values.
      upright: Whether images with an EXIF orientation are refused.
      missing: Videos that a list contains, but the download does not, one line each.
      listed: Number of examples of each split in its list, with those that are missing. Default:
        those of ``splits``.
      notes: What the user should know, one line each.
    """

    splits: dict[str, list[Pair]] | dict[str, list[VideoFile]]
    problems: list[str]
    dataset: Dataset | None
    advice: str = "replace the file"
    upright: bool = False
    missing: list[str] = dataclasses.field(default_factory=list)
    listed: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def value_table(classes: Mapping[int, int], ignored: Iterable[int] = (IGNORE_INDEX,)) -> np.ndarray:
    """Returns the class of each value, 255 for ignored values, -1 for all others.

    A value that is in both arguments is a class.
    """
    table = np.full(256, INVALID, np.int16)
    table[list(ignored)] = IGNORE_INDEX
    for value, index in classes.items():
        table[value] = index
    return table


def find_root(source: pathlib.Path, content: str, *candidates: str) -> pathlib.Path:
    """Returns the first of ``source / candidate`` and ``source`` that contains ``content``.

    If there is none, returns the first candidate, so that messages name it.
    """
    roots = [*(source / name for name in candidates), source]
    return next((root for root in roots if (root / content).exists()), roots[0])


def list_files(
    source: pathlib.Path, directory: pathlib.Path, problems: list[str], archive: str | None = None
) -> list[File]:
    """Returns the files in a directory and below, sorted by name.

    Hidden files, and files in hidden directories, are left out. If the directory does not exist,
    its files are those in the zip ``source / archive``.
    """
    name = directory.relative_to(source).as_posix()
    if directory.is_dir():

        def fail(error: OSError) -> None:
            problems.append(
                f"{error.filename} cannot be read ({error.strerror}); check its permissions"
            )

        tree = os.walk(directory, onerror=fail, followlinks=True)
        paths = sorted(pathlib.Path(parent, name) for parent, _, names in tree for name in names)
        files = [File(path.relative_to(source).as_posix(), path) for path in paths]
    elif archive is not None and (source / archive).is_file():
        try:
            opened = zipfile.ZipFile(source / archive)
        except zipfile.BadZipFile as error:
            problems.append(f"{archive} is not a complete zip file ({error}); download it again")
            return []
        members = [m for m in opened.namelist() if m.startswith(f"{name}/") and m[-1] != "/"]
        files = [File(f"{archive}/{member}", member, opened) for member in sorted(members)]
    else:
        wanted = f"{name}/" + (f" and no {archive}" if archive else "")
        problems.append(f"there is no {wanted}; see docs/datasets.md for the layout")
        return []
    files = [file for file in files if "/." not in f"/{file.name}"]
    for file in files:
        if not _is_text(file.name):
            problems.append(f"the name {file.name!r} is not UTF-8; rename it")
    return [file for file in files if _is_text(file.name)]


def videos_by_name(
    source: pathlib.Path, directory: pathlib.Path, problems: list[str]
) -> dict[str, File]:
    """Returns the videos in a directory and below, by their names without the suffix."""
    found: dict[str, File] = {}
    for file in list_files(source, directory, problems):
        name = pathlib.PurePosixPath(file.name)
        if name.suffix.lower() in SUFFIXES:
            if name.stem in found:
                other = found[name.stem].name
                problems.append(f"{other} and {file.name} have the same id; remove one")
            found[name.stem] = file
    return found


def _is_text(name: str) -> bool:
    """Returns whether a file name is valid UTF-8. Python replaces other bytes by surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def read_list(source: pathlib.Path, path: pathlib.Path, problems: list[str]) -> list[str]:
    """Returns the lines of a list, without empty ones and without duplicates."""
    name = path.relative_to(source).as_posix()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        problems.append(f"there is no {name}; see docs/datasets.md for the layout")
        return []
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{name} cannot be read ({error}); save it as text in UTF-8")
        return []
    ids: dict[str, None] = {}
    for line in filter(None, lines):
        if line in ids:
            problems.append(f"{name} contains {line!r} twice; remove one")
        ids[line] = None
    if not ids:
        problems.append(f"{name} is empty; add at least one line")
    return list(ids)


def read_table(
    source: pathlib.Path, path: pathlib.Path, columns: Iterable[str], problems: list[str]
) -> list[tuple[str, dict[str, str]]]:
    """Returns the rows of a CSV file, each with what messages call it.

    Args:
      source: Directory of the download.
      path: The file.
      columns: Names of the columns that the file must have.
      problems: What is wrong with the file is appended to this list.
    """
    name = path.relative_to(source).as_posix()
    rows = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            found = reader.fieldnames or []
            if missing := [column for column in columns if column not in found]:
                problems.append(
                    f"{name} has no column {' and no column '.join(missing)} (its first line is "
                    f"{','.join(found)!r}); see docs/datasets.md for the columns"
                )
                return []
            for row in reader:
                line = f"line {reader.line_num} of {name}"
                if empty := [column for column in columns if row[column] is None]:
                    problems.append(f"{line} has no {' and no '.join(empty)}; complete it")
                else:
                    rows.append((line, row))
    except FileNotFoundError:
        problems.append(f"there is no {name}; see docs/datasets.md for the layout")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(f"{name} cannot be read ({error}); save it as CSV in UTF-8")
    return rows


def draw_val(ids: Iterable[str]) -> list[str]:
    """Returns a fifth of the ids, but at least one: those with the smallest SHA-256 hashes."""
    ordered = sorted(ids, key=lambda key: hashlib.sha256(key.encode()).digest())
    return ordered[: max(1, len(ordered) // 5)]


def pair(
    images: Mapping[str, File],
    labels: Mapping[str, File],
    names: tuple[str, str],
    table: np.ndarray,
    problems: list[str],
) -> list[Pair]:
    """Pairs images and label maps with the same id.

    Args:
      images: The image of each id.
      labels: The label map of each id.
      names: Name of a missing image, and of a missing label map, with ``{}`` for the id.
      table: See ``Pair``.
      problems: Files without a partner are appended to this list.
    """
    for key in sorted(images.keys() - labels.keys()):
        problems.append(
            f"{images[key].name} has no label map {names[1].format(key)}; add or rename it"
        )
    for key in sorted(labels.keys() - images.keys()):
        problems.append(f"{labels[key].name} has no image {names[0].format(key)}; add or rename it")
    both = sorted(images.keys() & labels.keys())
    return [Pair(key, images[key], labels[key], table) for key in both]


def pair_listed(
    source: pathlib.Path,
    ids: Iterable[str],
    image: str,
    label: str,
    table: np.ndarray,
    problems: list[str],
) -> list[Pair]:
    """Pairs the files of listed ids. ``image`` and ``label`` are paths with ``{}`` for the id."""
    pairs = []
    for key in ids:
        files = [File(name, source / name) for name in (image.format(key), label.format(key))]
        missing = [file.name for file in files if not pathlib.Path(file.path).is_file()]
        problems += [f"{name} is missing, but a list contains {key!r}; add it" for name in missing]
        if not missing:
            pairs.append(Pair(key, *files, table))
    return pairs
