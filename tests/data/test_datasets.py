"""The registry of datasets, their classes and their readers."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from configs import segmentation
from nonlocal_jax import data
from nonlocal_jax.data import datasets
from nonlocal_jax.data.datasets import digits_flag
from nonlocal_jax.errors import InputError
from tests.data import archives

NUM_CLASSES = {
    "cityscapes": 19,
    "ade20k": 150,
    "voc12aug": 21,
    "pascal_context59": 59,
    "pascal_context60": 60,
    "kinetics400": 400,
    "charades": 157,
    "digits_flag": 3,
    "digits_odd": 4,
}


def test_the_registry_is_complete():
    assert data.DATASETS.keys() == NUM_CLASSES.keys()


@pytest.mark.parametrize("name", NUM_CLASSES)
def test_classes_and_colors_are_complete(name):
    dataset = data.get_dataset(name)
    assert dataset.name == name
    assert len(dataset.classes) == len(dataset.palette) == NUM_CLASSES[name]
    assert all(dataset.classes)
    assert len(set(dataset.classes)) == len(dataset.classes)
    assert all(len(c) == 3 and 0 <= min(c) <= max(c) <= 255 for c in dataset.palette)


def test_classes_are_in_the_order_of_the_labels():
    assert data.get_dataset("cityscapes").classes[::18] == ("road", "bicycle")
    assert data.get_dataset("cityscapes").palette[13] == (0, 0, 142)  # car
    assert data.get_dataset("voc12aug").classes[:2] == ("background", "aeroplane")
    assert data.get_dataset("ade20k").classes[0] == "wall"
    kinetics = data.get_dataset("kinetics400").classes
    assert kinetics == tuple(sorted(kinetics))
    assert kinetics[208] == "passing American football (in game)"
    assert data.get_dataset("charades").classes[92] == "Watching/Looking outside of a window"


def test_voc_colors_follow_their_formula():
    def color(index):
        """Distributes the bits of the class index over the channels, highest bit first."""
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= (index >> bit & 1) << 7 - bit // 3
        return tuple(channels)

    assert data.get_dataset("voc12aug").palette == tuple(color(i) for i in range(21))


def test_configs_have_the_number_of_classes_of_their_dataset():
    for name in segmentation.NAMES:
        config = segmentation.get_config(name)
        data.get_dataset(config.data.name).check_num_classes(config.model.num_classes)


def test_a_model_with_other_classes_is_refused():
    message = "predicts 3 classes, but cityscapes has 19; use --config.model.num_classes=19"
    with pytest.raises(InputError, match=message):
        data.get_dataset("cityscapes").check_num_classes(3)


@pytest.mark.parametrize("name", NUM_CLASSES)
def test_json_and_back(name):
    dataset = data.get_dataset(name)
    again = data.Dataset.from_json(json.loads(json.dumps(dataset.to_json())))
    assert again.to_json() == dataset.to_json()
    assert (again.name, again.classes, again.palette) == (name, dataset.classes, dataset.palette)


def test_an_unknown_name_gives_the_most_similar_one():
    with pytest.raises(InputError, match="did you mean 'cityscapes'"):
        data.get_dataset("cityscape")
    with pytest.raises(InputError, match=r"use one of cityscapes, .*digits_flag"):
        data.get_dataset("xyz")


def test_a_dataset_that_is_not_prepared_is_refused(tmp_path):
    message = f"not prepared in {tmp_path}; run `.*prepare cityscapes .*--data-dir={tmp_path}`"
    with pytest.raises(InputError, match=message):
        data.load_source("cityscapes", "train", tmp_path)


def test_unknown_datasets_and_splits_are_refused():
    with pytest.raises(InputError, match="did you mean 'digits_flag'"):
        data.load_source("digit_flag", "train")
    with pytest.raises(InputError, match="digits_flag has no split 'test'; use train or val"):
        data.load_source("digits_flag", "test")


def test_default_data_dir(monkeypatch):
    monkeypatch.setenv("NONLOCAL_JAX_DATA", "~/here")
    assert datasets.default_data_dir() == pathlib.Path.home() / "here"
    monkeypatch.delenv("NONLOCAL_JAX_DATA")
    assert datasets.default_data_dir() == pathlib.Path.home() / ".cache/nonlocal_jax"


def test_a_directory_that_cannot_be_created_is_refused(tmp_path):
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
    with pytest.raises(InputError, match="delete this directory"):
        data.load_source("digits_flag", "val", copy)[0]


@pytest.mark.parametrize("pattern", ["*val.array_record*", "dataset_info.json", "features.json"])
def test_a_missing_file_is_refused(data_dir, tmp_path, pattern):
    copy, directory = copy_of(data_dir, tmp_path)
    next(directory.glob(pattern)).unlink()
    with pytest.raises(InputError, match="delete this directory"):
        data.load_source("digits_flag", "val", copy)[0]


def test_an_index_beyond_the_end_is_an_index_error(data_dir):
    with pytest.raises(IndexError):
        data.load_source("digits_flag", "val", data_dir)[256]


BUILD = """
import sys
from nonlocal_jax import data
from nonlocal_jax.data.datasets import digits_flag
digits_flag.NUM_EXAMPLES = {"train": 32, "val": 8}
data.load_source("digits_flag", "train", sys.argv[1])[0]
assert "tensorflow" not in sys.modules
"""


def test_another_process_builds_the_same_examples_without_tensorflow(data_dir, tmp_path):
    command = [sys.executable, "-W", "error", "-c", BUILD, str(tmp_path)]
    assert subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout == b""
    # Only the result, and no temporary directories.
    assert [path.name for path in (tmp_path / "digits_flag").iterdir()] == ["2.1.0"]
    for split, number in (("train", 32), ("val", 8)):
        built, complete = (
            {e["id"]: e for e in data.load_source("digits_flag", split, directory)}
            for directory in (tmp_path, data_dir)
        )
        assert len(built) == number
        for name, example in built.items():
            np.testing.assert_array_equal(example["image"], complete[name]["image"])
            np.testing.assert_array_equal(example["label"], complete[name]["label"])


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Lets gs://bucket be a directory. Returns it, and the list of the files that were read."""
    monkeypatch.setenv("NONLOCAL_JAX_DATA", str(tmp_path / "host"))
    read = []

    def open_file(original, path, mode):
        path = os.fspath(path)
        if path.startswith("gs://bucket"):
            read.append(path)
            path = path.replace("gs://bucket", str(tmp_path / "bucket"))
        return original(path, mode)

    with epath.testing.mock_epath(open=open_file):
        yield tmp_path / "bucket", read


def test_a_dataset_in_a_bucket_is_copied_once(tmp_path, bucket, monkeypatch):
    directory, read = bucket
    source = archives.folder(tmp_path / "source")
    data.prepare_dataset("folder", source, directory / "data", name="leaves")
    opened = [data.load_source("leaves", "train", "gs://bucket/data/") for _ in range(2)]
    copied = [path for path in read if "array_record" in path]
    assert len(copied) == len(set(copied)) == 2
    (copy,) = (tmp_path / "host/copies").iterdir()
    assert copy.name.startswith("gs-bucket-data-")
    assert [path.name for path in (copy / "leaves").iterdir()] == ["1.0.0"]
    expected = data.load_source("leaves", "train", directory / "data")
    assert [e["id"] for e in opened[1]] == [e["id"] for e in expected]
    assert data.get_dataset("leaves", "gs://bucket/data") == opened[0].dataset
    # The embedded dataset is built on every host.
    monkeypatch.setattr(digits_flag, "NUM_EXAMPLES", {"train": 2, "val": 1})
    assert len(data.load_source("digits_flag", "train", "gs://bucket/data")) == 2
    # Another dataset under the same name is another copy.
    shutil.rmtree(directory)
    archives.folder(source, {"train": 6, "val": 2})
    data.prepare_dataset("folder", source, directory / "data", name="leaves")
    assert len(data.load_source("leaves", "train", "gs://bucket/data")) == 6


def test_a_damaged_bucket_is_refused(tmp_path, bucket):
    directory, _ = bucket
    with pytest.raises(InputError, match="ade20k is not in gs://bucket/data: there is no "):
        data.load_source("ade20k", "train", "gs://bucket/data")
    source = archives.ade20k(tmp_path / "source")
    prepared = data.prepare_dataset("ade20k", source, directory / "data", partial=True)
    os.truncate(next(prepared.directory.glob("*val*")), 1000)
    with pytest.raises(InputError, match=r"damaged: .*val.* has 1,000 bytes .*upload it again"):
        data.load_source("ade20k", "train", "gs://bucket/data")
    next(prepared.directory.glob("*val*")).unlink()
    with pytest.raises(InputError, match="cannot be read: FileNotFoundError"):
        data.load_source("ade20k", "train", "gs://bucket/data")
    (prepared.directory / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        data.load_source("ade20k", "train", "gs://bucket/data")
    assert not (tmp_path / "host").exists()


def test_a_bucket_needs_the_package_that_reads_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"gs://bucket cannot be read: .*gcsfs"):
        data.load_source("ade20k", "train", "gs://bucket")
    with pytest.raises(InputError, match="it cannot be in a bucket; use a local path"):
        data.prepare_dataset("ade20k", ".", "gs://bucket")
