import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from nonlocal_jax import data
from nonlocal_jax.data.source import default_data_dir
from nonlocal_jax.errors import InputError


def example(**changes):
    fields = {
        "image": np.zeros((4, 6, 3), np.uint8),
        "label": np.array([[0, 1, 2, 18, 255, 0]] * 4, np.uint8),
        "id": "street_7",
    }
    return fields | changes


def test_a_good_example_passes_unchanged():
    good = example()
    assert data.CheckedSource([good], 19)[0] is good


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.full((4, 6), 34, np.uint8)}, "0 to 18, or 255 to be ignored; got 34"),
        ({"label": np.array([[0, 19, 33, 255]] * 4, np.uint8)}, r"need a label uint8 \(4, 6\)"),
        ({"label": np.array([[0, 19, 33, 255, 1, 1]] * 4, np.uint8)}, "got 19, 33"),
        ({"label": np.zeros((4, 6), np.uint16)}, "uint16"),
        ({"label": np.zeros((4, 6, 3), np.uint8)}, r"\(4, 6, 3\)"),
        ({"image": np.zeros((4, 6, 3), np.float32)}, "float32"),
        ({"image": np.zeros((4, 6), np.uint8)}, r"need an image uint8 \[H, W, 3\]"),
        ({"image": np.zeros((4, 6, 4), np.uint8)}, r"\(4, 6, 4\)"),
    ],
)
def test_a_bad_example_is_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message) as error:
        data.CheckedSource([example(**changes)], 19)[0]
    assert "street_7" in str(error.value)


def test_missing_fields_are_named():
    with pytest.raises(InputError, match="lacks label, id; it has image"):
        data.CheckedSource([{"image": example()["image"]}], 19)[0]


def test_known_data_without_a_reader():
    with pytest.raises(InputError, match=r"cityscapes has no reader yet; digits_flag can be read"):
        data.load_source("cityscapes", "train")


def test_unknown_data_and_splits():
    with pytest.raises(InputError, match="did you mean 'digits_flag'"):
        data.load_source("digit_flag", "train")
    with pytest.raises(InputError, match="no split 'test' of digits_flag: use one of train, val"):
        data.load_source("digits_flag", "test")


def test_the_data_dir(monkeypatch):
    monkeypatch.setenv("NONLOCAL_JAX_DATA", "~/here")
    assert default_data_dir() == pathlib.Path.home() / "here"
    monkeypatch.delenv("NONLOCAL_JAX_DATA")
    assert default_data_dir() == pathlib.Path.home() / ".cache/nonlocal_jax"


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="NONLOCAL_JAX_DATA"):
        data.load_source("digits_flag", "train", tmp_path / "file")


def copy_of(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "copy")
    return tmp_path / "copy", next((tmp_path / "copy").glob("digits_flag/*"))


def test_a_truncated_shard_is_refused(data_dir, tmp_path):
    copy, directory = copy_of(data_dir, tmp_path)
    shard = next(directory.glob("*val.array_record*"))
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(InputError, match=r"Delete that directory"):
        data.load_source("digits_flag", "val", copy)[0]


@pytest.mark.parametrize("pattern", ["*val.array_record*", "dataset_info.json", "features.json"])
def test_a_missing_file_is_refused(data_dir, tmp_path, pattern):
    copy, directory = copy_of(data_dir, tmp_path)
    next(directory.glob(pattern)).unlink()
    with pytest.raises(InputError, match=r"Delete that directory"):
        data.load_source("digits_flag", "val", copy)[0]


def test_indices_beyond_the_end_stay_index_errors(data_dir):
    with pytest.raises(IndexError):
        data.load_source("digits_flag", "val", data_dir)[256]


def test_fingerprints_tell_sources_apart(data_dir):
    train, val = (data.load_source("digits_flag", split, data_dir) for split in ("train", "val"))
    prints = [
        data.fingerprint(source)
        for source in (
            train,
            val,
            [example()],
            [example(), example()],
            [example(id="street_8")],
            [example(image=np.ones((4, 6, 3), np.uint8))],
            [example(label=np.zeros((4, 6), np.uint8))],
            data.CheckedSource([example()], 19, "mine"),
            [],
        )
    ]
    assert len(set(prints)) == len(prints)
    assert data.fingerprint(train) == data.fingerprint(
        data.load_source("digits_flag", "train", data_dir)
    )


BUILD = """
import sys
from nonlocal_jax import data
data.load_source("digits_flag", "train", sys.argv[1])[0]
assert "tensorflow" not in sys.modules
"""


def test_two_processes_may_build_at_once_and_get_the_same_examples(data_dir, tmp_path):
    command = [sys.executable, "-W", "error", "-c", BUILD, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == [b"", b""]
    assert [process.returncode for process in processes] == [0, 0]
    # One result, and nothing half-done beside it.
    assert [path.name for path in (tmp_path / "digits_flag").iterdir()] == ["2.0.0"]
    for split in ("train", "val"):
        built, expected = (
            data.load_source("digits_flag", split, directory) for directory in (tmp_path, data_dir)
        )
        assert len(built) == len(expected)
        for a, b in zip(built, expected, strict=True):
            assert a["id"] == b["id"]
            np.testing.assert_array_equal(a["image"], b["image"])
            np.testing.assert_array_equal(a["label"], b["label"])
