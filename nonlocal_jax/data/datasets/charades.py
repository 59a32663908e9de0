"""Charades: any number of 157 actions for each video of about 30 seconds."""

import pathlib
import re

from nonlocal_jax.data.datasets._dataset import Dataset
from nonlocal_jax.data.datasets._layout import (
    Layout,
    VideoFile,
    find_root,
    read_list,
    read_table,
    videos_by_name,
)

NUM_CLASSES = 157
_LISTS = {"train": "Charades_v1_train.csv", "val": "Charades_v1_test.csv"}


def find(source: pathlib.Path) -> Layout:
    """Finds the lists, the names of the classes, and ``Charades_v1_480/ID.mp4``.

    A video without an action is an example without a class.
    """
    problems: list[str] = []
    missing: list[str] = []
    lists = find_root(source, _LISTS["train"], "Charades")
    # A line is "c000 Holding some clothes".
    names = [line[5:] for line in read_list(source, lists / "Charades_v1_classes.txt", problems)]
    if len(names) not in (0, NUM_CLASSES):
        problems.append(
            f"Charades_v1_classes.txt has {len(names)} lines instead of {NUM_CLASSES}; replace it"
        )
    videos = videos_by_name(source, source / "Charades_v1_480", problems)
    splits: dict[str, list[VideoFile]] = {}
    for split, name in _LISTS.items():
        splits[split] = []
        for line, row in read_table(source, lists / name, ("id", "actions"), problems):
            key = row["id"]
            actions = [action for action in row["actions"].split(";") if action]
            classes = [_class(action) for action in actions]
            if None in classes:
                wrong = actions[classes.index(None)]
                problems.append(f"{line} has the action {wrong!r}; use c000 to c156 and two times")
            elif key not in videos:
                missing.append(
                    f"Charades_v1_480/{key}.mp4 is missing, but {name} contains it; add it"
                )
            else:
                splits[split].append(VideoFile(key, videos[key], tuple(sorted({*classes}))))
    return Layout(splits, problems, Dataset("charades", tuple(names)), missing=missing)


def _class(action: str) -> int | None:
    """Returns the class of an action "c092 11.90 21.20", or None if it is malformed."""
    match = re.fullmatch(r"c(\d{3})( \d+(\.\d+)?){2}", action.strip())
    return int(match[1]) if match and int(match[1]) < NUM_CLASSES else None
