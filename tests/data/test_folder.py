"""Folders of images and masks: their classes, values and splits."""

import os
import shutil

import numpy as np
import PIL.Image
import pytest

from nonlocal_jax import data
from nonlocal_jax.errors import InputError
from tests.data import archives
from tests.experiments.test_readme import blocks


def prepare(tmp_path, source):
    return data.prepare_dataset("folder", source, tmp_path / "data", name="leaves")


def refused(tmp_path, source):
    with pytest.raises(InputError) as error_info:
        prepare(tmp_path, source)
    assert not (tmp_path / "data").exists()
    return str(error_info.value)


def labels(tmp_path, split="train"):
    return {e["id"]: e["label"] for e in data.load_source("leaves", split, tmp_path / "data")}


def test_classes_and_colors_are_those_of_the_table(tmp_path):
    prepared = prepare(tmp_path, archives.folder(tmp_path / "source"))
    dataset = data.get_dataset("leaves", tmp_path / "data")
    assert dataset == prepared.dataset == data.Dataset.from_json(dataset.to_json())
    assert dataset.name == "leaves"
    assert dataset.classes == ("road", "tree", "sky")
    assert dataset.palette == ((128, 64, 128), (107, 142, 35), (70, 130, 180))
    with pytest.raises(InputError, match=r"did you mean 'leaves'\? Or prepare it with"):
        data.get_dataset("leafs", tmp_path / "data")


@pytest.mark.parametrize(
    ("table", "classes", "expected"),
    [
        # Value: 0, 1, 38 and 255.
        ("value,name\n0,a\n1,b\n38,c\n", "abc", (0, 1, 2, 255)),
        ("name,value\nIgnore,0\nb,1\na,38\n", "ba", (255, 0, 1, 255)),
        ("value,name\n255,a\n0,b\n1,ignore\n38,ignore\n", "ab", (1, 255, 255, 0)),
    ],
)
def test_values_are_mapped_to_classes(table, classes, expected, tmp_path):
    source = archives.folder(tmp_path / "source", classes=table, values=(0, 1, 38, 255))
    # A table that a spreadsheet saved begins with a byte order mark.
    (source / "classes.csv").write_text("\ufeff" + table.replace("\n", "\r\n"), newline="")
    prepared = prepare(tmp_path, source)
    assert prepared.dataset.classes == tuple(classes)
    assert prepared.dataset.palette[:2] == ((0, 0, 0), (128, 0, 0))
    for key, label in labels(tmp_path).items():
        raw = np.asarray(PIL.Image.open(source / f"masks/{key}.png"))
        for value, index in zip((0, 1, 38, 255), expected, strict=True):
            assert set(np.unique(label[raw == value])) == {index}


def test_without_a_table_the_values_are_the_classes(tmp_path):
    prepared = prepare(tmp_path, archives.folder(tmp_path / "source", classes=None))
    assert prepared.dataset.classes == ("class 0", "class 1", "class 2")
    label = labels(tmp_path)["train_0"]
    assert set(np.unique(label)) == {0, 1, 2, 255}


@pytest.mark.parametrize("values", [(0, 255), (1, 2), (0, 2, 3)])
def test_without_a_table_the_values_count_from_zero(values, tmp_path):
    source = archives.folder(tmp_path / "source", classes=None, values=values)
    listed = ", ".join(map(str, values))
    assert f"contain the values {listed}; without classes.csv" in refused(tmp_path, source)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "has the columns none"),
        ("name,colour\na,\nb,\n", "write value,name,color in its first line"),
        ("0,a\n1,b\n", "has the columns 0, a"),
        ("value;name\n0;a\n", "has the columns value;name; write value,name,color in its first"),
        ("name,color\na,red\nb,\nc,\n", "line 2 of classes.csv has the color 'red'; write it as"),
        ("name\na\nb\n" + "c" * 201 + "\n", "line 4 of classes.csv has the name 'cccc"),
        ("name\na\nb\nc\x1bd\n", "line 4 of classes.csv has the name 'c\\x1bd'"),
        ("name\na\nb\nb\n", "line 4 of classes.csv has the name 'b'"),
        ("name,value\na,0\nb,1\nc,\n,3\n", "line 5 of classes.csv has the name ''"),
        ("name,value\na,0\nb,0\nc,2\nd,1\n", "line 3 of classes.csv has the value '0'"),
        ("name,value\na,256\nb,x\nc,-1\n", "line 4 of classes.csv has the value '-1'"),
        ("value,name\n0,a\n,b\n2,c\n", "line 3 of classes.csv has the value ''"),
        ("name\nignore\n", "classes.csv has 0 classes"),
        ("name\n" + "".join(f"c{i}\n" for i in range(256)), "classes.csv has 256 classes"),
        ("name\na\nb\n", "masks/train_0.png contains 2; list each value in classes.csv"),
    ],
)
def test_a_wrong_table_is_refused(table, message, tmp_path):
    source = archives.folder(tmp_path / "source", classes=table or "\n")
    assert message in refused(tmp_path, source)


def test_masks_of_other_types(tmp_path):
    source = archives.folder(tmp_path / "source", {"train": 7, "val": 1})
    masks = [source / f"masks/train_{i}.png" for i in range(7)]
    images = [next((source / "images").glob(f"train_{i}.*")) for i in range(7)]
    gray = np.zeros(archives.SIZE, np.uint8)
    PIL.Image.fromarray(gray).convert("RGBA").save(masks[0])
    PIL.Image.fromarray(gray).convert("LA").save(masks[1])
    masks[2].rename(masks[2].with_suffix(".jpg"))
    masks[3].rename(masks[3].with_suffix(".tif"))
    images[4].rename(images[4].with_suffix(".webp"))
    PIL.Image.open(images[0]).save(images[0], format="WEBP")  # under the name of a JPEG or PNG
    archives.write(images[5].with_suffix(".jpg"), archives.random_image(0))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.open(images[6]).save(images[6], exif=exif)
    (source / "images/.DS_Store").touch()
    (source / "images/Thumbs.db").touch()
    message = refused(tmp_path, source)
    for text in (
        "masks/train_0.png is a PNG of the type RGBA with 8 bits; save it as",
        "for example with the script in docs/datasets.md",
        "masks/train_1.png is a PNG of the type gray with alpha with 8 bits",
        "masks/train_2.jpg is not a .png file; convert it",
        "masks/train_3.tif is not a .png file",
        "images/train_4.webp is not a .jpeg or .jpg or .png file",
        "images/train_5.jpg and images/train_5.png have the same id",
        "images/train_6.jpg has the EXIF orientation 6",
        f"{images[0].name} is a WebP image; export or convert it",
        "has no label map masks/train_2.png; add or rename it",
        "images/train_4.jpg or .png is missing, but a list contains it",
    ):
        assert text in message
    assert "11 problems" in message


def test_masks_with_few_bits_keep_their_values(tmp_path):
    source = archives.folder(tmp_path / "source", {"train": 3, "val": 1}, values=(0, 1))
    expected = {}
    for i, bits in enumerate((1, 2, 4)):
        path = source / f"masks/train_{i}.png"
        expected[path.stem] = np.array(PIL.Image.open(path))
        write_gray(path, expected[path.stem], bits)
    prepare(tmp_path, source)
    for key, label in labels(tmp_path).items():
        np.testing.assert_array_equal(label, expected[key])


def write_gray(path, array, bits):
    """Writes a gray PNG with fewer than 8 bits, which PIL cannot write."""
    import struct
    import zlib

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    shifts = np.arange(8 - bits, -1, -bits)
    packed = (array.reshape(array.shape[0], -1, 8 // bits) << shifts).sum(-1).astype(np.uint8)
    rows = np.pad(packed, ((0, 0), (1, 0))).tobytes()
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], bits, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def ids(tmp_path, source):
    prepare(tmp_path, source)
    return {split: set(labels(tmp_path, split)) for split in ("train", "val")}


def test_without_lists_a_fixed_fifth_is_val(tmp_path):
    source = archives.folder(tmp_path / "source", {"train": 12, "val": 0}, lists=False)
    found = ids(tmp_path, source)
    assert found["val"] == {"train_1", "train_4"}
    assert len(found["train"]) == 10
    assert not found["train"] & found["val"]


def test_lists_choose_the_examples(tmp_path):
    source = archives.folder(tmp_path / "source", {"train": 4, "val": 2})
    archives.write_lines(source / "train.txt", ["train_0.jpg", "", "train_2"])
    assert ids(tmp_path, source) == {"train": {"train_0", "train_2"}, "val": {"val_0", "val_1"}}


def test_a_missing_list_is_the_rest(tmp_path):
    source = archives.folder(tmp_path / "source", {"train": 2, "val": 2})
    (source / "train.txt").unlink()
    archives.write_lines(source / "val.txt", ["val_1"])
    assert ids(tmp_path, source)["train"] == {"train_0", "train_1", "val_0"}


def test_wrong_lists_are_refused(tmp_path):
    source = archives.folder(tmp_path / "source", {"train": 2, "val": 1})
    archives.write_lines(source / "train.txt", ["train_0", "train_9", "val_0"])
    (source / "val.txt").write_bytes(b"\xff\xfe\x00")
    message = refused(tmp_path, source)
    assert "images/train_9.jpg or .png is missing, but a list contains it" in message
    assert "val.txt cannot be read" in message
    archives.write_lines(source / "val.txt", ["val_0"])
    assert "'val_0' is in train and in val" in refused(tmp_path, source)
    (source / "val.txt").write_text("\n")
    message = refused(tmp_path, source)
    assert "val.txt is empty" in message
    assert "val has no examples" in message


def test_subdirectories_and_links_are_part_of_the_ids(tmp_path):
    source = archives.folder(tmp_path / "source")
    for kind in ("images", "masks"):
        path = next((source / kind).glob("train_0.*"))
        (tmp_path / kind).mkdir()
        path.rename(tmp_path / kind / path.name)
        (source / kind / "a").symlink_to(tmp_path / kind)
    archives.write_lines(source / "train.txt", ["a/train_0", "train_1"])
    assert ids(tmp_path, source)["train"] == {"a/train_0", "train_1"}


def test_hidden_directories_and_names_of_other_encodings(tmp_path):
    source = archives.folder(tmp_path / "source", lists=False)
    for kind in ("images", "masks"):
        shutil.copytree(source / kind, source / kind / ".ipynb_checkpoints")
    shutil.copytree(source, tmp_path / "other")
    assert {len(keys) for keys in ids(tmp_path, source).values()} == {5, 1}
    shutil.rmtree(tmp_path / "data")
    for path in (tmp_path / "other").rglob("val_0.*"):
        os.rename(path, os.fsencode(path.parent) + b"/Stra\xdfe" + os.fsencode(path.suffix))
    message = refused(tmp_path, tmp_path / "other")
    assert r"'images/Stra\udcdfe.jpg' is not UTF-8; rename it" in message
    assert len(message.splitlines()) == 3


def test_without_readable_masks_nothing_is_said_about_their_values(tmp_path):
    source = archives.folder(tmp_path / "source", classes=None)
    shutil.rmtree(source / "masks")
    assert "the masks contain" not in refused(tmp_path, source)


def test_the_script_of_the_documentation_replaces_colors(tmp_path, monkeypatch):
    source = archives.folder(tmp_path / "source", classes=None, values=(0, 1, 2))
    expected = {}
    for path in (source / "masks").iterdir():
        expected[path.stem] = np.array(PIL.Image.open(path))
        colors = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)
        archives.write(path, colors[expected[path.stem]])
    assert "is a PNG of the type RGB" in refused(tmp_path, source)
    monkeypatch.chdir(source)
    script, _ = blocks("docs/datasets.md", "python")
    exec(script, {})
    prepare(tmp_path, source)
    for key, label in labels(tmp_path).items():
        np.testing.assert_array_equal(label, expected[key])


def test_the_script_of_the_documentation_rotates_photographs(tmp_path, monkeypatch):
    source = archives.folder(tmp_path / "source")
    (source / "images/Thumbs.db").touch()
    photo = next((source / "images").glob("*.png"))
    upright = np.array(PIL.Image.open(photo))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(np.rot90(upright)).save(photo, exif=exif)
    assert "has the EXIF orientation 6" in refused(tmp_path, source)
    monkeypatch.chdir(source)
    _, script = blocks("docs/datasets.md", "python")
    exec(script, {})
    prepare(tmp_path, source)
    np.testing.assert_array_equal(np.array(PIL.Image.open(photo)), upright)
