"""Makes small datasets that are laid out as the real downloads are.

Every function writes to a directory that ``experiments.prepare`` takes as --source. ``examples`` is
the number of images of each split. The images are random, and every label map contains all of the
raw values that the dataset allows, as long as they fit.
"""

import pathlib
import zipfile

import numpy as np
import PIL.Image
from scipy.io import savemat

EXAMPLES = {"train": 4, "val": 2}
SIZE = (64, 128)


def random_image(seed, size=SIZE):
    """Returns a smooth RGB image, which JPEG does not change much."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    return np.asarray(PIL.Image.fromarray(coarse).resize(size[::-1], PIL.Image.Resampling.BILINEAR))


def random_labels(seed, values, size=SIZE):
    """Returns a label map of blocks, with the values in random places."""
    blocks = np.resize(np.array(values, np.uint8), (size[0] // 4, size[1] // 4))
    return np.random.default_rng(seed).permuted(blocks).repeat(4, 0).repeat(4, 1)


def write(path, array, palette=False):
    """Writes an image: JPEG or PNG by the suffix; a palette PNG on request."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = PIL.Image.fromarray(array)
    if palette:
        image.putpalette([(37 * i + c) % 256 for i in range(256) for c in (0, 80, 160)])
    image.save(path, **({"quality": 95} if path.suffix in (".jpg", ".jpeg") else {}))


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def cityscapes(directory, examples=EXAMPLES, *, train_ids=False, zips=False):
    """The folders, or the zips, leftImg8bit_trainvaltest and gtFine_trainvaltest."""
    directory = pathlib.Path(directory)
    suffix, values = (
        ("labelTrainIds", [*range(19), 255]) if train_ids else ("labelIds", [*range(34)])
    )
    for split, number in examples.items():
        for i in range(number):
            city = ("aachen", "bochum")[i % 2] if split == "train" else "lindau"
            key = f"{city}_{i:06d}_000019"
            write(
                directory / f"leftImg8bit/{split}/{city}/{key}_leftImg8bit.png",
                random_image((1, len(split), i)),
            )
            stem = directory / f"gtFine/{split}/{city}/{key}_gtFine"
            labels = random_labels((2, len(split), i), values)
            write(stem.with_name(f"{stem.name}_{suffix}.png"), labels)
            # The archive also contains these.
            write(stem.with_name(f"{stem.name}_instanceIds.png"), labels.astype(np.uint16) * 1000)
            write(stem.with_name(f"{stem.name}_color.png"), np.stack([labels] * 3, -1))
            write_lines(stem.with_name(f"{stem.name}_polygons.json"), ["{}"])
    if zips:
        for folder in ("leftImg8bit", "gtFine"):
            paths = sorted((directory / folder).rglob("*.*"))
            with zipfile.ZipFile(directory / f"{folder}_trainvaltest.zip", "w") as archive:
                archive.writestr("README", "")
                for path in paths:
                    archive.write(path, path.relative_to(directory).as_posix())
                    path.unlink()
            for path in sorted((directory / folder).rglob("*"), reverse=True):
                path.rmdir()
            (directory / folder).rmdir()
    return directory


def ade20k(directory, examples=EXAMPLES):
    """ADEChallengeData2016.zip of the scene parsing challenge, extracted."""
    directory = pathlib.Path(directory)
    root = directory / "ADEChallengeData2016"
    for split, number in examples.items():
        folder = {"train": "training", "val": "validation"}[split]
        for i in range(1, number + 1):
            key = f"ADE_{split}_{i:08d}"
            write(root / f"images/{folder}/{key}.jpg", random_image((3, len(split), i)))
            labels = random_labels((4, len(split), i), range(151))
            write(root / f"annotations/{folder}/{key}.png", labels)
    write_lines(root / "objectInfo150.txt", ["Idx\tRatio"])
    return directory


def voc12aug(directory, examples=EXAMPLES, *, sbd=True):
    """VOCtrainval_11-May-2012.tar and benchmark.tgz (SBD), extracted.

    Half of the training images have labels of VOC, and half of SBD. SBD also lists images of VOC
    train and val. Without ``sbd``, there is the folder SegmentationClassAug instead.
    """
    directory = pathlib.Path(directory)
    voc, bench = directory / "VOCdevkit/VOC2012", directory / "benchmark_RELEASE/dataset"
    train, val = (
        [f"2008_{s}{i:05d}" for i in range(examples[split])]
        for s, split in (("0", "train"), ("1", "val"))
    )
    half = (len(train) + 1) // 2
    own, extra = train[:half], train[half:]
    values = [*range(21), 255]
    for i, key in enumerate(train + val):
        write(voc / f"JPEGImages/{key}.jpg", random_image((5, i)))
        labels = random_labels((6, i), values)
        if key not in extra:
            write(voc / f"SegmentationClass/{key}.png", labels, palette=True)
        # SBD has labels for nearly all of the images, and other ones than VOC.
        other = random_labels((7, i), range(21))
        if sbd:
            (bench / "cls").mkdir(parents=True, exist_ok=True)
            record = np.zeros((1, 1), [("Segmentation", object)])
            record[0, 0]["Segmentation"] = other
            savemat(bench / f"cls/{key}.mat", {"GTcls": record}, do_compression=True)
        else:
            write(voc / f"SegmentationClassAug/{key}.png", other)
    write_lines(voc / "ImageSets/Segmentation/train.txt", own)
    write_lines(voc / "ImageSets/Segmentation/val.txt", val)
    if sbd:
        listed = [*own, *extra, *val]
        write_lines(bench / "train.txt", listed[::2])
        write_lines(bench / "val.txt", listed[1::2])
    return directory


def pascal_context(directory, examples=EXAMPLES):
    """VOCtrainval_03-May-2010.tar, with the label maps of mmsegmentation's converter."""
    directory = pathlib.Path(directory)
    voc = directory / "VOCdevkit/VOC2010"
    for split, number in examples.items():
        keys = [f"2008_{len(split)}{i:05d}" for i in range(number)]
        for i, key in enumerate(keys):
            write(voc / f"JPEGImages/{key}.jpg", random_image((8, len(split), i)))
            labels = random_labels((9, len(split), i), [*range(60), 255])
            write(voc / f"SegmentationClassContext/{key}.png", labels)
        write_lines(voc / f"ImageSets/SegmentationContext/{split}.txt", keys)
    return directory


CLASSES = "name,color\nroad,#804080\ntree,#6b8e23\nsky,#4682b4\n"


def folder(directory, examples=EXAMPLES, *, classes=CLASSES, values=(0, 1, 2, 255), lists=True):
    """A folder of images and masks: JPEG and PNG photographs, gray and palette masks."""
    directory = pathlib.Path(directory)
    for split, number in examples.items():
        keys = [f"{split}_{i}" for i in range(number)]
        for i, key in enumerate(keys):
            suffix = (".jpg", ".png")[i % 2]
            write(directory / f"images/{key}{suffix}", random_image((10, len(split), i)))
            labels = random_labels((11, len(split), i), values)
            write(directory / f"masks/{key}.png", labels, palette=i % 2 == 0)
        if lists:
            write_lines(directory / f"{split}.txt", keys)
    if classes:
        (directory / "classes.csv").write_text(classes)
    return directory


# Makes the download of each dataset.
ARCHIVES = {
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "voc12aug": voc12aug,
    "pascal_context59": pascal_context,
    "pascal_context60": pascal_context,
    "folder": folder,
}
