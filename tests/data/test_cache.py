import concurrent.futures
import contextlib
import multiprocessing
import os
import pathlib
import pickle
import resource
import shutil
import signal
import time

import numpy as np
import pytest

from nonlocal_jax import data
from nonlocal_jax._interrupt import Interrupted, interruptible
from nonlocal_jax.data import _cores
from nonlocal_jax.errors import InputError
from tests.data import archives


class Pictures:
    """Pictures of different sizes, and fields of other types."""

    name = "pictures/train"
    dataset = "the dataset"

    def __init__(self, read=None, number=20, pause=0.0):
        self.read = read  # the indices that were read are written to this file
        self.number = number
        self.pause = pause

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        time.sleep(self.pause)
        if self.read:
            with open(self.read, "a") as file:
                file.write(f"{index}\n")
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (5 + index, 7, 3), np.uint8)
        return {
            "image": image,
            "clip": image.transpose(2, 0, 1)[:, ::2].astype(np.float32),
            "empty": image[:0],
            "label": np.int32(index),
            "id": f"ä{index}",
            "width": 7,
            "note": None,
        }


def partial(directory):
    return [name for name in os.listdir(directory) if name.startswith(".")]


def test_it_has_the_examples_of_the_source(tmp_path):
    source = Pictures(tmp_path / "read")
    before = data.fingerprint(source)
    cached = data.cached(source, tmp_path / "cache")
    # Again, and in a worker: nothing is read from the source.
    (tmp_path / "read").unlink()
    copies = cached, data.cached(source, tmp_path / "cache"), pickle.loads(pickle.dumps(cached))
    assert len((tmp_path / "read").read_text().split()) == 3  # by the fingerprint
    for copy in copies:
        assert (copy.name, copy.dataset, len(copy)) == (source.name, source.dataset, 20)
        assert data.fingerprint(copy) == before
        for index in (0, 7, 19, -1):
            actual, expected = copy[index], source[index % 20]
            assert actual.keys() == expected.keys()
            for field, value in expected.items():
                assert np.asarray(actual[field]).dtype == np.asarray(value).dtype
                np.testing.assert_array_equal(actual[field], value)
            with pytest.raises(ValueError, match="read-only"):
                actual["image"][0] = 0
    with pytest.raises(IndexError):
        cached[20]
    other = data.cached(Pictures(number=19), tmp_path / "cache")
    assert len(other) == 19
    # A source may be a list.
    assert data.cached([source[1]], tmp_path / "cache")[0]["width"] == 7


def test_a_dataset_that_was_prepared_again_has_another_cache(tmp_path):
    source = archives.folder(tmp_path / "source")
    for value in (1, 2):
        mask = source / "masks/train_1.png"  # the fingerprint does not depend on it
        archives.write(mask, np.full(archives.SIZE, value, np.uint8))
        data.prepare_dataset("folder", source, tmp_path / str(value), name="leaves")
    opened = [data.load_source("leaves", "train", tmp_path / str(value)) for value in (1, 2)]
    assert data.fingerprint(opened[0]) == data.fingerprint(opened[1])
    # The files have the same sizes.
    assert len({os.stat(path).st_size for path in tmp_path.glob("[12]/*/*/*train*")}) == 1
    for value, one in zip((1, 2), opened, strict=True):
        labels = {e["id"]: e["label"] for e in data.cached(one, tmp_path / "cache")}
        assert (labels["train_1"] == value).all()


def test_one_process_writes_and_a_killed_one_is_replaced(tmp_path, capfd):
    source, directory = Pictures(tmp_path / "read", pause=0.05), tmp_path / "cache"
    process = multiprocessing.get_context("spawn").Process(
        target=data.cached, args=(source, directory)
    )
    process.start()
    while not _has_open(process.pid, "/data"):
        time.sleep(0.01)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        cached = thread.submit(data.cached, source, directory)
        while "waiting for another process" not in capfd.readouterr().err:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert len(cached.result()) == 20
    assert not partial(directory)
    (tmp_path / "read").unlink()
    assert len(data.cached(source, directory)) == 20
    assert len((tmp_path / "read").read_text().split()) == 3


def _has_open(pid, suffix):
    for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(link).endswith(suffix):
                return True
    return False


def test_a_full_disk_is_reported_with_the_bytes_needed(tmp_path, monkeypatch):
    message = r"cannot write the cache .*; it needs about [\d,]+ bytes, so use"
    # The limit of the size of a file acts like a full disk.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(InputError, match=message):
            data.cached(Pictures(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    # Before the disk is full.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    read = tmp_path / "read"
    with pytest.raises(InputError, match=message):
        data.cached(Pictures(read, number=5000), tmp_path)
    assert len(read.read_text().split()) < 1000
    assert not partial(tmp_path)


def test_damage_and_other_types_are_reported(tmp_path):
    data.cached(Pictures(), tmp_path)
    (path,) = tmp_path.glob("pictures-train-*")
    with open(path / "data", "r+b") as file:
        file.truncate(100)
    with pytest.raises(InputError, match=r"'data' has 100 bytes instead of .*; delete this"):
        data.cached(Pictures(), tmp_path)
    for value in (b"", [1], np.array(["a"], object)):
        with pytest.raises(InputError, match="the field 'x' of example 3 is of the type"):
            data.cached([{"id": 3, "x": value}], tmp_path)


def test_a_stop_of_several_processes_leaves_nothing(tmp_path):
    answers = iter([False, True, True])
    examples = [{"label": np.zeros(4)}] * 3
    with pytest.raises(Interrupted), interruptible(lambda: next(answers)):
        data.cached(examples, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_source_leaves_nothing(tmp_path):
    class Bad(Pictures):
        def __getitem__(self, index):
            if index == 17:
                raise InputError("example 17 is damaged; replace it")
            return super().__getitem__(index)

    with pytest.raises(InputError, match="example 17 is damaged"):
        data.cached(Bad(), tmp_path)
    assert not partial(tmp_path)


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "100000 100000"}, 1),
        ("0::/of/the/host", {"cpu.max": "50000 100000"}, 1),
        ("0::/a", {"a/cpu.max": "max 100000"}, 64),
        (
            "3:memory:/x\n2:cpu,cpuacct:/a",
            {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"},
            3,
        ),
        (
            "2:cpu,cpuacct:/a",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            64,
        ),
        (None, {}, 64),
    ],
)
def test_cores_are_limited_by_control_groups(tmp_path, monkeypatch, group, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in {**files, **({"proc/self/cgroup": group} if group else {})}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert _cores.usable_cores(tmp_path) == cores
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(1))
    assert _cores.usable_cores(tmp_path) == 1
