"""PASCAL Context with 59 or 60 classes: VOC 2010 with the label maps of mmsegmentation's converter.

The value 0 of a label map is background. It is ignored with 59 classes, and is the first of 60.
"""

import pathlib

from nonlocal_jax.data.datasets._dataset import DATASETS, SPLITS
from nonlocal_jax.data.datasets._layout import (
    Layout,
    find_root,
    pair_listed,
    read_list,
    value_table,
)

_TABLES = {
    59: value_table({index + 1: index for index in range(59)}, ignored=[0, 255]),
    60: value_table({index: index for index in range(60)}),
}


def find(source: pathlib.Path, num_classes: int) -> Layout:
    """Finds ``VOC2010/{JPEGImages,SegmentationClassContext,ImageSets/SegmentationContext}``."""
    problems: list[str] = []
    voc = find_root(source, "JPEGImages", "VOCdevkit/VOC2010", "VOC2010")
    image = (voc / "JPEGImages/{}.jpg").relative_to(source).as_posix()
    label = (voc / "SegmentationClassContext/{}.png").relative_to(source).as_posix()
    splits = {}
    for split in SPLITS:
        ids = read_list(source, voc / f"ImageSets/SegmentationContext/{split}.txt", problems)
        splits[split] = pair_listed(source, ids, image, label, _TABLES[num_classes], problems)
    return Layout(
        splits,
        problems,
        DATASETS[f"pascal_context{num_classes}"],
        "use 0 for background and 1 to 59 for the other classes (the output of mmsegmentation's "
        "converter, not the 459 labels of the download)",
    )
