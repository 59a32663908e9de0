"""Preparing datasets: what is written, and what is refused, all at once and with nothing left."""

import io
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import threading

import cv2
import numpy as np
import PIL.Image
import pytest

from nonlocal_jax import data
from nonlocal_jax.data import _once
from nonlocal_jax.data.datasets import _build
from nonlocal_jax.errors import InputError
from tests.data import archives
from tests.helpers import child_environment

VARIANTS = {
    **archives.ARCHIVES,
    "cityscapes, train ids": lambda d: archives.cityscapes(d, train_ids=True),
    "cityscapes, zips": lambda d: archives.cityscapes(d, zips=True),
    "voc12aug, PNG": lambda d: archives.voc12aug(d, sbd=False),
}
TRAIN_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def prepare(name, source, data_dir, **options):
    defaults = {"name": "leaves"} if name == "folder" else {"partial": True}
    return data.prepare_dataset(name, source, data_dir, **(defaults | options))


def refused(name, source, data_dir, **options):
    """Returns the lines of the error, and requires that nothing is left behind."""
    with pytest.raises(InputError) as error_info:
        prepare(name, source, data_dir, **options)
    assert not pathlib.Path(data_dir).exists()
    return str(error_info.value).splitlines()


def has_line(lines, *parts):
    return any(all(part in line for part in parts) for line in lines)


def expected_label(variant, raw):
    """The class of each pixel, from the definition of each dataset."""
    raw = raw.astype(int)
    if variant in ("cityscapes", "cityscapes, zips"):
        return np.select([raw == i for i in TRAIN_IDS], range(19), 255)
    if variant in ("ade20k", "pascal_context59"):
        return np.where(np.isin(raw, (0, 255)), 255, raw - 1)
    return raw


def read_values(path):
    if path.suffix == ".mat":
        from scipy.io import loadmat

        return loadmat(path)["GTcls"][0, 0]["Segmentation"]
    return np.asarray(PIL.Image.open(path))


def files_of(source, key, variant):
    """The image and the label of an example, found without the library."""
    if variant.startswith("cityscapes"):
        kind = "labelTrainIds" if "train ids" in variant else "labelIds"
        return (
            next(source.glob(f"leftImg8bit/*/*/{key}_leftImg8bit.png")),
            next(source.glob(f"gtFine/*/*/{key}_gtFine_{kind}.png")),
        )
    paths = {path.parts[len(source.parts) :]: path for path in source.rglob(f"{key}.*")}
    (image,) = (path for parts, path in paths.items() if {"images", "JPEGImages"} & {*parts})
    labels = {path.parent.name: path for path in paths.values() if path != image}
    # VOC's own masks come first.
    return image, labels.get("SegmentationClass") or next(iter(labels.values()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_are_unchanged_and_labels_are_classes(variant, tmp_path, monkeypatch):
    monkeypatch.setattr(_build, "SHARD_SIZE", 3000)  # several shards
    name = variant.partition(",")[0]
    source = VARIANTS[variant](tmp_path / "source")
    prepared = prepare(name, source, tmp_path / "data")
    assert prepared.new
    assert prepared.examples == archives.EXAMPLES
    assert [path.name for path in (tmp_path / "data").iterdir()] == [prepared.dataset.name]
    assert [path.name for path in prepared.directory.parent.iterdir()] == ["1.0.0"]
    assert len(list(prepared.directory.glob("*-train.array_record*"))) > 1
    if "zips" in variant:
        shutil.rmtree(source)
        archives.cityscapes(source)  # the same files, to compare with
    for split, number in archives.EXAMPLES.items():
        opened = data.load_source(prepared.dataset.name, split, tmp_path / "data")
        assert opened.name == f"{prepared.dataset.name}/{split}"
        assert opened.dataset == prepared.dataset
        again = pickle.loads(pickle.dumps(opened))
        assert len(opened) == len(again) == number
        for i in range(number):
            example = again[i]
            image, label = files_of(source, example["id"], variant)
            assert opened._records[i]["image"] == image.read_bytes()
            assert example["image"].shape == (*archives.SIZE, 3)
            labels = expected_label(variant, read_values(label))
            np.testing.assert_array_equal(example["label"], labels)
            data.check_example(example, len(prepared.dataset.classes))


def test_voc12aug_joins_voc_and_sbd(tmp_path):
    source = archives.voc12aug(tmp_path / "source", {"train": 6, "val": 3})
    prepare("voc12aug", source, tmp_path / "data")
    train = data.load_source("voc12aug", "train", tmp_path / "data")
    labels = {example["id"]: example["label"] for example in train}
    # 3 of VOC, and the other 3 of SBD; SBD also lists those of VOC train and val.
    assert len(train) == len(labels) == 6
    root = source / "VOCdevkit/VOC2012"
    own = (root / "ImageSets/Segmentation/train.txt").read_text().split()
    assert len(own) == 3
    for key, label in labels.items():
        mask = root / f"SegmentationClass/{key}.png"
        assert mask.exists() == (key in own)
        # Only the masks of VOC contain 255.
        assert (255 in label) == (key in own)


def test_the_numbers_of_examples_are_those_of_the_published_datasets(tmp_path):
    counts = {
        "cityscapes": (2975, 500),
        "ade20k": (20210, 2000),
        "voc12aug": (10582, 1449),
        "pascal_context59": (4998, 5105),
        "pascal_context60": (4998, 5105),
    }
    for name, numbers in counts.items():
        source = archives.ARCHIVES[name](tmp_path / name, {"train": 1, "val": 1})
        lines = refused(name, source, tmp_path / "data", partial=False)
        assert len(lines) == 3
        for line, split, number in zip(lines[1:], ("train", "val"), numbers, strict=True):
            assert f"{split} has 1 examples instead of {number:,}; " in line
            assert "--partial" in line


# ---------------------------------------------------------------------------------------------


def flip(path, index=-40):
    """Inverts a byte. The byte -14 of a PNG is in the checksum of its data, which PIL ignores."""
    content = bytearray(path.read_bytes())
    content[index] ^= 255
    path.write_bytes(bytes(content))


def image_of(i, source):
    return sorted(source.glob("leftImg8bit/train/*/*.png"))[i]


def label_of(i, source):
    return sorted(source.glob("gtFine/train/*/*_labelIds.png"))[i]


def test_every_problem_of_a_download_is_listed_at_once(tmp_path):
    source = archives.cityscapes(tmp_path / "source", {"train": 16, "val": 1})
    images, labels = ([f(i, source) for i in range(16)] for f in (image_of, label_of))
    expected = []

    def expect(path, *parts):
        expected.append((path.relative_to(source).as_posix(), *parts))

    os.truncate(images[0], images[0].stat().st_size // 2)
    expect(images[0], "not a complete PNG", "replace the file")
    flip(images[1])
    expect(images[1], "damaged")
    images[2].write_text("<html>404</html>")
    expect(images[2], "is an HTML page")
    flip(images[15], -14)
    expect(images[15], "damaged", "OpenCV")
    images[3].write_bytes(b"")
    expect(images[3], "damaged", "0 bytes")
    images[4].unlink()
    expect(labels[4], "no image")
    labels[5].unlink()
    expect(images[5], "no label map")
    archives.write(labels[6], np.full(archives.SIZE, 34, np.uint8))
    expect(labels[6], "contains 34", "label ids from 0 to 33")
    archives.write(labels[7], np.zeros(archives.SIZE, np.uint16))
    expect(labels[7], "16 bits")
    archives.write(labels[8], np.zeros((*archives.SIZE, 3), np.uint8))
    expect(labels[8], "RGB", "palette")
    archives.write(labels[9], np.zeros((64, 64), np.uint8))
    expect(labels[9], "64x64 pixels", "128x64")
    os.truncate(labels[10], 60)
    expect(labels[10], "not a complete PNG")
    flip(labels[11], -14)
    expect(labels[11], "damaged", "OpenCV")
    labels[12].write_bytes(b"")
    expect(labels[12], "not a PNG image")
    shutil.copy(images[13], images[0].parent)  # of another city
    expect(images[13], "same id")
    PIL.Image.new("L", archives.SIZE[::-1]).save(labels[15], "JPEG")
    expect(labels[15], "JPEG", "changes the values")
    for path in source.glob("leftImg8bit/val/*/*"):
        path.unlink()
    expected.append(("val has no examples",))
    expected.append(("train has 14 examples instead of 2,975",))

    lines = refused("cityscapes", source, tmp_path / "data", partial=False)
    assert [parts for parts in expected if not has_line(lines, *parts)] == []
    # One line more: the label map of the removed image of val.
    assert f"{len(expected) + 1} problems" in lines[0]
    assert len(lines) == len(expected) + 2


def garbage(jpeg):
    """Replaces some bytes of a JPEG so that OpenCV decodes it and PIL does not."""
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        start = rng.integers(len(jpeg) // 2, len(jpeg) - 60)
        bad = jpeg[:start] + rng.bytes(40) + jpeg[start + 40 :]
        try:
            PIL.Image.open(io.BytesIO(bad)).load()
        except OSError as error:
            decoded = cv2.imdecode(np.frombuffer(bad, np.uint8), cv2.IMREAD_COLOR)
            if "broken data stream" in str(error) and decoded is not None:
                return bad
    pytest.fail("no such damage")


def test_damage_that_opencv_does_not_notice_is_found(tmp_path):
    source = archives.ade20k(tmp_path / "source", {"train": 2, "val": 1})
    path = next(source.rglob("training/*.jpg"))
    path.write_bytes(garbage(path.read_bytes()))
    lines = refused("ade20k", source, tmp_path / "data")
    assert len(lines) == 2
    assert has_line(lines, path.name, "broken data stream")


def test_problems_of_lists_and_mat_files(tmp_path):
    source = archives.voc12aug(tmp_path / "source", {"train": 8, "val": 2})
    voc, sbd = source / "VOCdevkit/VOC2012", source / "benchmark_RELEASE/dataset"
    lists = voc / "ImageSets/Segmentation"
    train, val = ((lists / f"{split}.txt").read_text().split() for split in ("train", "val"))
    archives.write_lines(lists / "train.txt", [*train, train[0], "2008_999999", val[0]])
    (voc / f"JPEGImages/{val[1]}.jpg").unlink()
    mats = sorted(sbd.glob("cls/*.mat"))[len(train) : 8]
    mats[0].unlink()
    mats[1].write_bytes(mats[1].read_bytes()[:200])
    mats[2].write_text("text")
    lines = refused("voc12aug", source, tmp_path / "data")
    assert has_line(lines, "train.txt contains", train[0], "twice")
    assert has_line(lines, "JPEGImages/2008_999999.jpg is missing")
    assert has_line(lines, "SegmentationClass/2008_999999.png is missing")
    assert has_line(lines, val[0], "is in train and in val")
    assert has_line(lines, f"JPEGImages/{val[1]}.jpg is missing")
    assert has_line(lines, f"cls/{mats[0].name} is missing")
    assert has_line(lines, f"cls/{mats[1].name} is damaged")
    assert has_line(lines, f"cls/{mats[2].name} is damaged")
    assert len(lines) == 9


def test_wrong_labels_name_the_likely_mistake(tmp_path):
    source = archives.pascal_context(tmp_path / "context", {"train": 1, "val": 1})
    mask = next(source.rglob("SegmentationClassContext/*.png"))
    archives.write(mask, np.full(archives.SIZE, 60, np.uint8))
    lines = refused("pascal_context60", source, tmp_path / "data")
    assert has_line(lines, mask.name, "contains 60", "459 labels")
    source = archives.ade20k(tmp_path / "ade", {"train": 1, "val": 1})
    mask = next(source.rglob("annotations/training/*.png"))
    archives.write(mask, archives.random_labels(0, range(140, 170)))
    lines = refused("ade20k", source, tmp_path / "data")
    assert has_line(lines, mask.name, "contains 151, 152, 153,", ", ...; ", "not the full ADE20K")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("cityscapes", "no leftImg8bit/ and no leftImg8bit_trainvaltest.zip"),
        ("ade20k", "no ADEChallengeData2016/images/training/"),
        ("voc12aug", "no VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt"),
        ("voc12aug", "no benchmark_RELEASE/dataset/cls/"),
        ("pascal_context59", "no VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt"),
        ("folder", "no images/"),
    ],
)
def test_an_empty_source_names_what_is_missing(name, missing, tmp_path):
    (tmp_path / "source").mkdir()
    lines = refused(name, tmp_path / "source", tmp_path / "data")
    assert has_line(lines, missing, "docs/datasets.md")
    assert has_line(lines, "train has no examples")
    assert "there is no directory" in refused(name, tmp_path / "nothing", tmp_path / "data")[0]


def test_a_source_that_cannot_be_read_is_not_the_fault_of_the_data_dir(tmp_path):
    source = archives.pascal_context(tmp_path / "source")
    archives.write_lines(next(source.rglob("val.txt")), ["x" * 300])
    (line,) = refused("pascal_context59", source, tmp_path / "data")
    assert line.startswith(f"cannot read {source}/VOCdevkit/VOC2010/JPEGImages/xxx")
    assert line.endswith("File name too long; check the path and its permissions")


def test_a_damaged_zip_is_refused(tmp_path):
    source = archives.cityscapes(tmp_path / "source", zips=True)
    images, labels = (source / f"{f}_trainvaltest.zip" for f in ("leftImg8bit", "gtFine"))
    flip(images, 2000)
    os.truncate(labels, labels.stat().st_size // 2)
    lines = refused("cityscapes", source, tmp_path / "data")
    assert has_line(lines, "gtFine_trainvaltest.zip is not a complete zip file")
    archives.cityscapes(tmp_path / "other", zips=True)
    shutil.copy(tmp_path / "other" / labels.name, labels)
    lines = refused("cityscapes", source, tmp_path / "data")
    assert has_line(lines, "leftImg8bit_trainvaltest.zip/leftImg8bit/", "cannot be read (Bad CRC")
    assert len(lines) == 2


def test_at_most_a_thousand_problems_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("nonlocal_jax.data.datasets.prepare._MAX_PROBLEMS", 3)
    (tmp_path / "source").mkdir()
    lines = refused("cityscapes", tmp_path / "source", tmp_path / "data")
    assert lines[-1] == "  and 2 more"


# ---------------------------------------------------------------------------------------------


def test_running_again_says_that_it_is_there(tmp_path):
    source = archives.folder(tmp_path / "source")
    first = prepare("folder", source, tmp_path / "data")
    shutil.rmtree(source)
    second = prepare("folder", source, tmp_path / "data")
    assert second == first._replace(new=False)
    shard = next(first.directory.glob("*train*"))
    os.truncate(shard, os.stat(shard).st_size - 1)
    message = r"bytes instead of .*; delete this directory and run `.*folder --name=leaves "
    with pytest.raises(InputError, match=message):
        prepare("folder", source, tmp_path / "data")
    with pytest.raises(InputError, match=message):
        data.load_source("leaves", "val", tmp_path / "data")


def test_damage_that_does_not_change_the_sizes(tmp_path):
    prepared = prepare("folder", archives.folder(tmp_path / "source"), tmp_path / "data")
    for name in ("metadata.json", "dataset_info.json", "manifest.json"):
        path = prepared.directory / name
        content = path.read_bytes()
        path.write_bytes(b"\xff" * len(content))
        with pytest.raises(InputError, match=r"damaged: .*delete this directory and run"):
            data.load_source("leaves", "train", tmp_path / "data")
        path.write_bytes(content)
    # A file that this user may not read is not damaged.
    shard = next(prepared.directory.glob("*train*"))
    shard.unlink()
    shard.mkdir()
    with pytest.raises(InputError, match=r"cannot read .*train.*; check its permissions$"):
        data.load_source("leaves", "train", tmp_path / "data")


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


KILLED = """
import os, signal, sys
from nonlocal_jax.data.datasets import _build
from nonlocal_jax import data
write, calls = _build._call, []
def count(*arguments):
    calls.append(None)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*arguments)
_build._call = count
data.prepare_dataset("ade20k", sys.argv[1], sys.argv[2], partial=True)
"""


def test_a_killed_command_leaves_nothing_that_matters(tmp_path):
    source = archives.ade20k(tmp_path / "source")
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "data")]
    process = subprocess.run(command, env=child_environment(), stderr=subprocess.DEVNULL)
    assert process.returncode == -9
    parent = tmp_path / "data/ade20k"
    assert any(path.name.startswith(".1.0.0.building-") for path in parent.iterdir())
    with pytest.raises(InputError, match="not prepared"):
        data.load_source("ade20k", "train", tmp_path / "data")
    killed = prepare("ade20k", source, tmp_path / "data")
    assert [path.name for path in parent.iterdir()] == ["1.0.0"]
    undisturbed = prepare("ade20k", source, tmp_path / "other")
    assert contents(killed.directory) == contents(undisturbed.directory)


def test_two_at_once_end_with_one(tmp_path, capsys):
    source = archives.folder(tmp_path / "source")
    other = prepare("folder", source, tmp_path / "other")
    directory = tmp_path / "data/leaves/1.0.0"
    results = []
    second = threading.Thread(
        target=lambda: results.append(prepare("folder", source, tmp_path / "data"))
    )

    def write(target):
        second.start()
        second.join(0.3)
        assert second.is_alive()
        shutil.copytree(other.directory, target, dirs_exist_ok=True)

    assert _once.create_once(type(other.directory)(directory), write)
    second.join()
    assert results == [other._replace(directory=directory, new=False)]
    assert [path.name for path in directory.parent.iterdir()] == ["1.0.0"]
    assert "waiting for another process" in capsys.readouterr().err


def test_an_interrupted_command_leaves_nothing(tmp_path, monkeypatch):
    source = archives.folder(tmp_path / "source")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_build, "_close", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare("folder", source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    source = archives.folder(tmp_path / "source")

    def fail(*_):
        raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(_build.ArrayRecordWriter, "write", fail, raising=True)
    assert has_line(refused("folder", source, tmp_path / "data"), "No space left on device")
    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert has_line(refused("folder", source, tmp_path / "data"), "GB are needed")


def test_files_that_change_while_they_are_read_are_refused(tmp_path, monkeypatch):
    source = archives.folder(tmp_path / "source")

    def change(*arguments):
        archives.write(source / "masks/val_0.png", np.full(archives.SIZE, 9, np.uint8))
        return space(*arguments)

    from nonlocal_jax.data.datasets import prepare as module

    space = module._check_space
    monkeypatch.setattr(module, "_check_space", change)
    assert has_line(refused("folder", source, tmp_path / "data"), "masks/val_0.png has changed")


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("folder", None, "lower-case letters"),
        ("folder", "My Data", "lower-case letters"),
        ("folder", "../x", "lower-case letters"),
        ("folder", "cityscapes", "reserved"),
        ("folder", "folder", "reserved"),
        ("ade20k", "mine", "only for folder"),
        ("digits_flag", None, "cannot be prepared; use cityscapes, "),
    ],
)
def test_names_are_checked(kind, name, message, tmp_path):
    with pytest.raises(InputError, match=message):
        data.prepare_dataset(kind, tmp_path, tmp_path / "data", name=name)
