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
    lines = read_list(source, lists / "Charades_v1_classes.txt", problems)
    codes = [f"c{number:03d} " for number in range(NUM_CLASSES)]
    if lines and [line[:5] for line in lines] != codes:
        problems.append(
            f"the {len(lines)} lines of Charades_v1_classes.txt are not c000 to c156 and their "
            "names, in this order; replace it"
        )
    names = tuple(line[5:] for line in lines)
    videos = videos_by_name(source, source / "Charades_v1_480", problems)
    splits: dict[str, list[VideoFile]] = {}
    listed: dict[str, int] = {}
    for split, name in _LISTS.items():
        splits[split] = []
        rows = read_table(source, lists / name, ("id", "actions"), problems)
        listed[split] = len(rows)
        for line, row in rows:
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
    return Layout(splits, problems, Dataset("charades", names), missing=missing, listed=listed)


def _class(action: str) -> int | None:
    """Returns the class of an action "c092 11.90 21.20", or None if it is malformed."""
    match = re.fullmatch(r"c(\d{3})( \d+(\.\d+)?){2}", action.strip())
    return int(match[1]) if match and int(match[1]) < NUM_CLASSES else None
