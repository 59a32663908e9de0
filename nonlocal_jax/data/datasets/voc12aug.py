"""PASCAL VOC 2012 with the training labels of the Semantic Boundaries Dataset (SBD).

train = VOC train, with the labels of VOC
        + (SBD train and SBD val - VOC train - VOC val), with the labels of SBD
val   = VOC val
"""

import pathlib

from nonlocal_jax.data.datasets._dataset import DATASETS
from nonlocal_jax.data.datasets._layout import (
    Layout,
    find_root,
    list_files,
    pair_listed,
    read_list,
    value_table,
)

_TABLE = value_table({index: index for index in range(21)})


def find(source: pathlib.Path) -> Layout:
    """Finds VOC2012 and either ``cls/*.mat`` of SBD or ``VOC2012/SegmentationClassAug/*.png``."""
    problems: list[str] = []
    voc = find_root(source, "JPEGImages", "VOCdevkit/VOC2012", "VOC2012")
    sbd = find_root(source, "cls", "benchmark_RELEASE/dataset", "VOCdevkit/VOCaug/dataset")
    lists = {
        split: read_list(source, voc / f"ImageSets/Segmentation/{split}.txt", problems)
        for split in ("train", "val")
    }
    extra, extra_label = [], ""
    if (sbd / "cls").is_dir():
        extra = [key for s in lists for key in read_list(source, sbd / f"{s}.txt", problems)]
        extra_label = (sbd / "cls/{}.mat").relative_to(source).as_posix()
    elif (voc / "SegmentationClassAug").is_dir():
        files = list_files(source, voc / "SegmentationClassAug", problems)
        extra = [pathlib.Path(file.path).stem for file in files if file.name.endswith(".png")]
        extra_label = (voc / "SegmentationClassAug/{}.png").relative_to(source).as_posix()
    else:
        problems.append(
            "there is no benchmark_RELEASE/dataset/cls/ and no SegmentationClassAug/; "
            "see docs/datasets.md for the layout"
        )
    known = {*lists["train"], *lists["val"]}
    extra = [key for key in dict.fromkeys(extra) if key not in known]

    image = (voc / "JPEGImages/{}.jpg").relative_to(source).as_posix()
    label = (voc / "SegmentationClass/{}.png").relative_to(source).as_posix()
    splits = {
        split: pair_listed(source, ids, image, label, _TABLE, problems)
        for split, ids in lists.items()
    }
    splits["train"] += pair_listed(source, extra, image, extra_label, _TABLE, problems)
    return Layout(
        splits,
        problems,
        DATASETS["voc12aug"],
        "use 0 to 20 for the classes and 255 for ignored pixels",
    )
