"""Kinetics-400: one action for each video of about ten seconds."""

import pathlib

from nonlocal_jax.data.datasets._dataset import Dataset
from nonlocal_jax.data.datasets._layout import (
    Layout,
    VideoFile,
    find_root,
    read_table,
    videos_by_name,
)

_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")


def find(source: pathlib.Path) -> Layout:
    """Finds the lists of the splits, and ``ID_START_END.mp4`` in ``train/`` and ``val/``.

    START and END are in seconds, with six digits. The classes are the labels of train, sorted.
    """
    problems: list[str] = []
    missing: list[str] = []
    lists = find_root(source, "train.csv", "annotations")
    names = {"train": "train.csv", "val": "val.csv"}
    if not (lists / "val.csv").exists() and (lists / "validate.csv").exists():
        names["val"] = "validate.csv"
    rows = {
        split: read_table(source, lists / name, _COLUMNS, problems) for split, name in names.items()
    }
    classes = sorted({row["label"] for _, row in rows["train"]})
    numbers = {label: number for number, label in enumerate(classes)}
    splits: dict[str, list[VideoFile]] = {}
    for split in rows:
        videos = videos_by_name(source, source / split, problems)
        splits[split] = []
        for line, row in rows[split]:
            if not (row["time_start"].isdecimal() and row["time_end"].isdecimal()):
                times = f"{row['time_start']!r} to {row['time_end']!r}"
                problems.append(f"{line} has the times {times}; use whole seconds")
                continue
            key = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
            if row["label"] not in numbers:
                problems.append(f"{line} has the label {row['label']!r}, which train does not have")
            elif key not in videos:
                missing.append(f"{split}/{key}.mp4 is missing, but a list contains it; add it")
            else:
                splits[split].append(VideoFile(key, videos[key], numbers[row["label"]]))
    return Layout(splits, problems, Dataset("kinetics400", tuple(classes)), missing=missing)
