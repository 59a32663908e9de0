"""Prepares a dataset from its raw download, or from a folder of images and masks or of videos."""

import contextlib
import functools
import itertools
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from nonlocal_jax._files import PathLike, local_path
from nonlocal_jax._progress import progress
from nonlocal_jax.data._cores import parallel_map
from nonlocal_jax.data.datasets import (
    _manifest,
    ade20k,
    charades,
    check_prepared,
    cityscapes,
    folder,
    kinetics400,
    pascal_context,
    read_dataset,
    video_folder,
    voc12aug,
)
from nonlocal_jax.data.datasets._build import (
    IMAGE_FEATURES,
    MULTI_LABEL_FEATURES,
    VIDEO_FEATURES,
    build,
)
from nonlocal_jax.data.datasets._dataset import DATASETS, SPLITS, Dataset
from nonlocal_jax.data.datasets._encode import STORAGES, Encoder
from nonlocal_jax.data.datasets._layout import Layout, VideoFile
from nonlocal_jax.data.datasets._location import create_directory, local_directory
from nonlocal_jax.data.datasets._scan import Facts, record, scan
from nonlocal_jax.errors import InputError, listing

# How to find the files of a folder.
_FOLDERS: dict[str, Callable[[pathlib.Path, str], Layout]] = {
    "folder": folder.find,
    "video_folder": video_folder.find,
}
# How to find the files of each dataset, and its numbers of examples.
_READERS: dict[str, Callable[[pathlib.Path], Layout]] = {
    "cityscapes": cityscapes.find,
    "ade20k": ade20k.find,
    "voc12aug": voc12aug.find,
    "pascal_context59": functools.partial(pascal_context.find, num_classes=59),
    "pascal_context60": functools.partial(pascal_context.find, num_classes=60),
    "kinetics400": kinetics400.find,
    "charades": charades.find,
}
_VIDEOS = ("kinetics400", "charades", "video_folder")
_COUNTS = {
    "cityscapes": {"train": 2975, "val": 500},
    "ade20k": {"train": 20210, "val": 2000},
    "voc12aug": {"train": 10582, "val": 1449},
    "pascal_context59": {"train": 4998, "val": 5105},
    "pascal_context60": {"train": 4998, "val": 5105},
    "charades": {"train": 7985, "val": 1863},
}
_MAX_PROBLEMS = 1000


class Prepared(NamedTuple):
    """A prepared dataset.

    Attributes:
      dataset: The dataset.
      directory: Its directory, ``DATA_DIR/NAME/VERSION``.
      examples: The number of examples of each split.
      new: Whether it was prepared now.
      notes: What the user should know about some files, one line each.
    """

    dataset: Dataset
    directory: epath.Path
    examples: dict[str, int]
    new: bool
    notes: list[str]


def prepare_dataset(
    kind: str,
    source: PathLike,
    data_dir: PathLike | None = None,
    *,
    name: str | None = None,
    partial: bool = False,
    storage: str = "h264",
    short_side: int = 256,
    allow_missing: int = 0,
) -> Prepared:
    """Checks all files of a download, and writes the prepared dataset.

    Every file is decoded before the dataset is written. The images are stored as they are. The
    label maps are stored as gray PNG of class indices and 255. Videos are encoded again, one file
    after the other, so that a call after an interruption continues. If the dataset is already
    prepared, nothing is done.

    Args:
      kind: Name of the dataset, or "folder" or "video_folder".
      source: Directory of the download, or of the folder. See docs/datasets.md for its layout.
      data_dir: Directory of all prepared datasets. Default: ``$NONLOCAL_JAX_DATA`` if it is set,
        else ``~/.cache/nonlocal_jax``.
      name: Name of the new dataset, only for the folders.
      partial: Whether other numbers of examples than those of the published dataset are accepted.
      storage: How videos are stored: "h264" (MP4 with a key frame every 32 frames), "jpeg" (larger,
        faster to read) or "copy" (the files as they are).
      short_side: Larger videos are reduced to this number of pixels of the shorter side. "copy"
        keeps their size.
      allow_missing: Number of videos that may be missing or damaged. They are left out.

    Raises:
      InputError: The name is invalid, files are missing or damaged, labels or numbers of examples
        are wrong, or the directory is not writable. The message lists all problems. Nothing is
        left in ``data_dir``, except the videos that were encoded, for the next call.
    """
    name = _check_name(kind, name)
    videos = kind in _VIDEOS
    if not videos and (storage, short_side, allow_missing) != ("h264", 256, 0):
        raise InputError(
            f"--storage, --short_side and --allow_missing are for videos, and {kind} has none; "
            "leave them out"
        )
    if storage not in STORAGES:
        raise InputError(f"--storage={storage} is unknown; use one of {', '.join(STORAGES)}")
    if short_side < 16:
        raise InputError(f"--short_side={short_side} is too small; use at least 16")
    if allow_missing < 0:
        raise InputError(f"--allow_missing={allow_missing} is negative; use 0 or more")
    directory = local_directory(name, data_dir)
    encoder = Encoder(storage, short_side, directory.parent / f".{directory.name}.videos")
    notes: list[str] = []

    def write(target: epath.Path) -> None:
        root = pathlib.Path(local_path(source))
        layout = _find(kind, name, root)
        scan_one = encoder.scan if videos else functools.partial(scan, layout=layout)
        facts = _scan_all(layout, scan_one, "video" if videos else "image")
        notes.extend(_leave_out(layout, facts, allow_missing))
        every = [fact for split in SPLITS for fact in facts[split]]
        unusable = layout.missing or any(fact.problems for fact in every)
        hint = "; --allow_missing=N leaves out N missing or damaged videos"
        hint = hint if videos and unusable else ""
        dataset = _check(layout, every, name, root, partial=partial, hint=hint)
        _check_space(directory, sum(fact.size for fact in every))
        _write(dataset, layout, encoder.record if videos else record, target)

    new = create_directory(directory, write)
    shutil.rmtree(encoder.directory, ignore_errors=True)
    check_prepared(name, directory)
    examples = _manifest.examples(directory)
    return Prepared(read_dataset(name, directory), directory, examples, new, notes)


def _check_name(kind: str, name: str | None) -> str:
    """Returns the name of the dataset."""
    if kind in _READERS:
        if name is not None:
            raise InputError(f"--name is only for {' and '.join(_FOLDERS)}; {kind} keeps its name")
        return kind
    if kind not in _FOLDERS:
        raise InputError(f"{kind!r} cannot be prepared; use {', '.join([*_READERS, *_FOLDERS])}")
    if name is None or not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise InputError(
            f"the name of the dataset is {name!r}; use lower-case letters, digits and underscores, "
            "and begin with a letter: --name=my_data"
        )
    if name in (*DATASETS, *_FOLDERS):
        raise InputError(f"the name {name!r} is reserved; use another --name")
    return name


def _find(kind: str, name: str, source: pathlib.Path) -> Layout:
    """Finds the files of a download."""
    try:
        if not source.is_dir():
            raise InputError(
                f"there is no directory {source}; use the directory of the download, or of your "
                "files"
            )
        return _FOLDERS[kind](source, name) if kind in _FOLDERS else _READERS[kind](source)
    except OSError as error:
        raise InputError(
            f"cannot read {error.filename}: {error.strerror}; check the path and its permissions"
        ) from error


def _scan_all(
    layout: Layout, scan_one: Callable[[Any], Facts], unit: str
) -> dict[str, list[Facts]]:
    """Scans the examples of each split."""
    examples = [example for split in SPLITS for example in layout.splits[split]]
    results = parallel_map(scan_one, examples)
    facts = iter(list(progress(results, len(examples), "checking", unit)))
    return {split: list(itertools.islice(facts, len(layout.splits[split]))) for split in SPLITS}


def _leave_out(layout: Layout, facts: Mapping[str, list[Facts]], allowed: int) -> list[str]:
    """Leaves out the examples that are missing or damaged, if they are at most ``allowed``.

    Returns:
      What the user should know, one line each.
    """
    every = [fact for split in SPLITS for fact in facts[split]]
    unusable = [*layout.missing, *(problem for fact in every for problem in fact.problems)]
    if len(unusable) > allowed:
        layout.problems += unusable
    else:
        for split, examples in layout.splits.items():
            pairs = zip(examples, facts[split], strict=True)
            layout.splits[split] = [example for example, fact in pairs if not fact.problems]
    left_out = [f"left out: {line}" for line in unusable]
    return [*layout.notes, *left_out, *(note for fact in every for note in fact.notes)]


def _check(
    layout: Layout,
    facts: list[Facts],
    name: str,
    source: pathlib.Path,
    *,
    partial: bool,
    hint: str,
) -> Dataset:
    """Returns the classes, and raises an InputError that lists everything that is wrong."""
    problems = [*layout.problems, *_duplicates(layout)]
    for split in SPLITS:
        number = len(layout.splits[split])
        listed = layout.listed.get(split, number)
        expected = _COUNTS.get(name, {}).get(split, listed)
        if number == 0:
            problems.append(f"{split} has no examples; add at least one")
        elif listed != expected and not partial:
            problems.append(
                f"{split} has {listed:,} examples instead of {expected:,}; complete the download, "
                "or add --partial to accept this number"
            )
    dataset = layout.dataset
    if dataset is None:
        values = frozenset().union(*(fact.values for fact in facts))
        dataset = folder.classes_from(name, values, problems)
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems):,} problems"
        lines = listing(problems, _MAX_PROBLEMS)
        raise InputError(f"{name} was not prepared from {source}: {count}{hint}{lines}")
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


def _write(
    dataset: Dataset,
    layout: Layout,
    record_one: Callable[[Any], dict[str, Any]],
    directory: epath.Path,
) -> None:
    examples = [example for split in SPLITS for example in layout.splits[split]]
    features = IMAGE_FEATURES
    if isinstance(examples[0], VideoFile):
        lists = isinstance(examples[0].label, tuple)
        features = MULTI_LABEL_FEATURES if lists else VIDEO_FEATURES
    with contextlib.closing(parallel_map(record_one, examples)) as records:
        unit = "video" if isinstance(examples[0], VideoFile) else "image"
        shown = progress(records, len(examples), "writing", unit)
        # One split is written after the other.
        splits = {split: itertools.islice(shown, len(layout.splits[split])) for split in SPLITS}
        build(dataset, splits, directory, features)
        next(shown, None)  # reports the end
