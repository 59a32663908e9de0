"""ADE20K with 150 classes: the folder ADEChallengeData2016 of the scene parsing challenge."""

import pathlib

from nonlocal_jax.data.datasets._dataset import DATASETS
from nonlocal_jax.data.datasets._layout import (
    Layout,
    find_root,
    list_files,
    pair,
    value_table,
)

# The value 0 is "other objects". It is ignored, and the classes begin at 1.
_TABLE = value_table({index + 1: index for index in range(150)}, ignored=[0])
_FOLDERS = {"train": "training", "val": "validation"}


def find(source: pathlib.Path) -> Layout:
    """Finds ``images/{training,validation}/ID.jpg`` and ``annotations/.../ID.png``."""
    root = find_root(source, "images", "ADEChallengeData2016")
    problems: list[str] = []
    splits = {}
    for split, folder in _FOLDERS.items():
        images, labels = (
            {
                pathlib.PurePath(file.path).stem: file
                for file in list_files(source, root / kind / folder, problems)
                if file.name.endswith(suffix)
            }
            for kind, suffix in (("images", ".jpg"), ("annotations", ".png"))
        )
        splits[split] = pair(images, labels, ("{}.jpg", "{}.png"), _TABLE, problems)
    return Layout(
        splits,
        problems,
        DATASETS["ade20k"],
        "use 0 for ignored pixels and 1 to 150 for the classes (the folder of the scene parsing "
        "challenge, not the full ADE20K)",
    )
