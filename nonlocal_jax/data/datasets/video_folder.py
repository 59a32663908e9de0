"""A folder of videos, see docs/datasets.md.

CLASS/ANY.mp4                one directory for each class, or
train/CLASS/ANY.mp4          the same for each split, or
val/CLASS/ANY.mp4
train.csv, val.csv           the path and the label of each video
"""

import pathlib

from nonlocal_jax.data.datasets._dataset import SPLITS, Dataset
from nonlocal_jax.data.datasets._layout import (
    File,
    Layout,
    VideoFile,
    draw_val,
    list_files,
    read_table,
)
from nonlocal_jax.data.videos import SUFFIXES

_MAX_NAME = 200

# A video and its classes.
_Labeled = tuple[File, list[str]]


def find(source: pathlib.Path, name: str) -> Layout:
    """Finds the videos, their classes and the splits. The classes are those of train, sorted."""
    problems: list[str] = []
    missing: dict[str, str] = {}  # a line for each name of a file
    notes: list[str] = []
    if any((source / f"{split}.csv").exists() for split in SPLITS):
        labeled = {split: _read_list(source, split, problems, missing) for split in SPLITS}
    else:
        labeled = _read_directories(source, problems, notes)
    classes = sorted({label for _, labels in labeled["train"] for label in labels})
    for label in classes:
        if not label or len(label) > _MAX_NAME or not label.isprintable():
            problems.append(
                f"{label[:_MAX_NAME]!r} is not the name of a class; use 1 to {_MAX_NAME} printable "
                "characters"
            )
    # Videos with other labels are refused, but also get a number, so that they are checked as well.
    every = {label for videos in labeled.values() for _, labels in videos for label in labels}
    numbers = {label: i for i, label in enumerate([*classes, *sorted(every - set(classes))])}
    # One video with several classes or with none makes every label a list.
    single = all(len(labels) == 1 for videos in labeled.values() for _, labels in videos)
    if not single and all(len(labels) < 2 for videos in labeled.values() for _, labels in videos):
        unlabeled = [file for videos in labeled.values() for file, labels in videos if not labels]
        notes.append(
            f"{unlabeled[0].name} has no label, so every video has a list of classes "
            "(loss.kind=sigmoid); for one class each, label it and prepare the data again"
        )
    splits: dict[str, list[VideoFile]] = {}
    for split, videos in labeled.items():
        splits[split] = []
        for file, labels in videos:
            if unknown := [label for label in labels if label not in classes]:
                problems.append(
                    f"{file.name} has the label {unknown[0]!r}, which no video of train has; "
                    "correct it"
                )
            if file.name not in missing:
                found = tuple(sorted({numbers[label] for label in labels}))
                key = pathlib.PurePosixPath(file.name).with_suffix("").as_posix()
                splits[split].append(VideoFile(key, file, found[0] if single else found))
    dataset = Dataset(name, tuple(classes))
    return Layout(splits, problems, dataset, missing=list(missing.values()), notes=notes)


def _read_list(
    source: pathlib.Path, split: str, problems: list[str], missing: dict[str, str]
) -> list[_Labeled]:
    """Reads a list of videos. Several labels of a video are separated by semicolons."""
    videos = []
    for line, row in read_table(source, source / f"{split}.csv", ("video", "label"), problems):
        path = source / row["video"]
        labels = [label.strip() for label in row["label"].split(";")]
        videos.append((File(row["video"], path), [label for label in labels if label]))
        if not path.is_file():
            missing[row["video"]] = f"{row['video']} is missing, but {line} contains it; add it"
    return videos


def _read_directories(
    source: pathlib.Path, problems: list[str], notes: list[str]
) -> dict[str, list[_Labeled]]:
    """Finds the videos in directories of classes.

    Without splits, a fifth of them is val, except for those of classes that train would not have.
    """
    if (source / "train").is_dir():
        others = [path.name for path in sorted(source.iterdir()) if path.is_dir()]
        if others := [name for name in others if name not in SPLITS and not name.startswith(".")]:
            notes.append(f"left out {', '.join(others)}: besides train/, only val/ is read")
        return {
            split: _by_class(list_files(source, source / split, problems), 1, problems, notes)
            for split in SPLITS
        }
    videos = _by_class(list_files(source, source, problems), 0, problems, notes)
    drawn = set(draw_val(file.name for file, _ in videos))
    classes = {label for file, (label,) in videos if file.name not in drawn}
    splits: dict[str, list[_Labeled]] = {split: [] for split in SPLITS}
    for file, (label,) in videos:
        is_val = file.name in drawn and label in classes
        splits["val" if is_val else "train"].append((file, [label]))
    return splits


def _by_class(
    files: list[File], depth: int, problems: list[str], notes: list[str]
) -> list[_Labeled]:
    """Returns the videos with the names of their directories, ``depth`` levels below the source."""
    videos, others = [], []
    for file in files:
        path = pathlib.PurePosixPath(file.name)
        if path.suffix.lower() not in SUFFIXES:
            others.append(file.name)
        elif len(path.parts) == depth + 2:
            videos.append((file, [path.parts[depth]]))
        else:
            problems.append(f"{file.name} is not in the directory of a class; move it to one")
    if others:
        number = f"{len(others)} {'file' if len(others) == 1 else 'files'}"
        notes.append(
            f"left out {number} without the ending of a video ({', '.join(SUFFIXES)}), such as "
            f"{others[0]}"
        )
    return videos
