"""Preparing videos: what is stored, and commands that are interrupted."""

import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from configs import video
from nonlocal_jax import data
from nonlocal_jax.data.datasets import _build, _encode
from nonlocal_jax.errors import InputError
from nonlocal_jax.tasks import get_task
from tests.data import movies
from tests.data.test_prepare import has_line
from tests.helpers import child_environment


def prepare(kind, source, data_dir, **options):
    name = "mine" if kind == "video_folder" else None
    options = {"partial": True, **options}
    return data.prepare_dataset(kind, source, data_dir, name=name, **options)


def refused(kind, source, data_dir, **options):
    """Returns the lines of the error, and requires that only encoded videos are left behind."""
    with pytest.raises(InputError) as error_info:
        prepare(kind, source, data_dir, **options)
    left = [path.name for path in pathlib.Path(data_dir).glob("*/*")]
    assert left in ([], [".1.0.0.videos"])
    return str(error_info.value).splitlines()


def opened(prepared, data_dir):
    return {
        split: list(data.load_source(prepared.dataset.name, split, data_dir))
        for split in ("train", "val")
    }


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """One download of each kind. Tests copy those that they change."""
    return movies.all_archives(tmp_path_factory.mktemp("archives"))


@pytest.fixture
def copied(archives, tmp_path):
    return lambda kind: movies.copy(archives[kind], tmp_path / "source")


# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", movies.ARCHIVES)
def test_videos_and_labels_are_stored(kind, archives, tmp_path, monkeypatch):
    monkeypatch.setattr(_build, "SHARD_SIZE", 5000)  # several shards
    prepared = prepare(kind, archives[kind], tmp_path)
    assert prepared.new
    assert prepared.notes == []
    assert prepared.examples == movies.EXAMPLES
    assert [path.name for path in prepared.directory.parent.iterdir()] == ["1.0.0"]
    assert len(list(prepared.directory.glob("*-train.array_record*"))) > 1
    assert data.load_source(prepared.dataset.name, "val", tmp_path).dataset == prepared.dataset
    assert len(prepared.dataset.palette) == len(prepared.dataset.classes)
    labels = {}
    for split, examples in opened(prepared, tmp_path).items():
        for example in examples:
            (path,) = archives[kind].rglob(f"{example['id'].rpartition('/')[2]}.mp4")
            original = movies.decoded(path.read_bytes())
            video = example["video"]
            assert example["num_frames"] == video.num_frames == len(original)
            assert (example["height"], example["width"]) == video.size == movies.SIZE
            stored = video.read(range(video.num_frames))
            assert np.abs(stored.astype(int) - original).mean() < 3
            labels[split, example["id"]] = example["label"]
    classes = prepared.dataset.classes
    if kind == "kinetics400":
        assert classes == ("archery, indoors", "zumba", "\u00e9crire")
        assert list(labels.values()) == [1, 0, 2, 1, 0, 1, 0, 2]
        assert ("val", "-id_5xyz_000035_000045") in labels
    elif kind == "charades":
        assert (len(classes), classes[3]) == (157, "Holding object 3")
        assert list(labels.values())[:4] == [(92, 147), (), (0,), (156,)]
    else:
        assert classes == ("jumping", "running")
        assert labels["val", "val/running/5"] == 1


def test_running_again_says_that_it_is_there(archives, tmp_path):
    first = prepare("kinetics400", archives["kinetics400"], tmp_path)
    again = prepare("kinetics400", tmp_path / "none", tmp_path)
    assert (first.new, again.new) == (True, False)
    assert again.dataset == first.dataset
    with pytest.raises(InputError, match=r"charades is not prepared.*experiments.prepare charades"):
        data.load_source("charades", "train", tmp_path)
    with pytest.raises(InputError, match=r"--name=mine .*for videos, video_folder instead"):
        data.load_source("mine", "train", tmp_path)


def test_a_list_of_videos_with_several_labels(archives, tmp_path):
    source = tmp_path / "source"
    for i in range(3):
        movies.write(source / f"clips/{i}.mkv", movies.video(5 + i, container="mkv"))
    rows = [["clips/0.mkv", "run; jump"], ["clips/1.mkv", ""]]
    movies.write_table(source / "train.csv", ("video", "label"), rows)
    movies.write_table(
        source / "val.csv", ("comment", "label", "video"), [["", "run", "clips/2.mkv"]]
    )
    prepared = prepare("video_folder", source, tmp_path / "data")
    assert prepared.dataset.classes == ("jump", "run")
    examples = opened(prepared, tmp_path / "data")
    assert [e["label"] for e in examples["train"]] == [(0, 1), ()]
    assert [e["label"] for e in examples["val"]] == [(1,)]
    assert [e["id"] for e in examples["train"]] == ["clips/0", "clips/1"]

    config = video.get_config("mmaction2_tsm_r50_8f")
    config.data.name, config.model.num_classes = "mine", 2
    with pytest.raises(InputError, match=r"'clips/0' are \[0, 1\]; .* or use loss.kind=sigmoid"):
        get_task(config).open_source(config, "train", tmp_path / "data")
    config.loss.kind = "sigmoid"
    get_task(config).open_source(config, "train", tmp_path / "data")


def test_a_video_without_a_label_is_noted(copied, tmp_path):
    """It makes the label of every video a list."""
    source = copied("video_folder")
    paths = ["train/running/0", "train/jumping/1", "train/running/2"]
    rows = [[f"{paths[0]}.mp4", "run"], [f"{paths[1]}.mp4", ""], [f"{paths[2]}.mp4", ""]]
    movies.write_table(source / "train.csv", ("video", "label"), rows)
    movies.write_table(source / "val.csv", ("video", "label"), [["val/running/5.mp4", "run"]])
    prepared = prepare("video_folder", source, tmp_path / "data")
    (note,) = prepared.notes
    assert note.startswith("train/jumping/1.mp4 has no label, so every video has a list of classes")
    assert [e["label"] for e in opened(prepared, tmp_path / "data")["train"]] == [(0,), (), ()]


def test_directories_without_splits_are_split(tmp_path):
    for i in range(10):
        movies.write(tmp_path / f"source/{'ab'[i % 2]}/{i}.mp4", movies.video(2))
    movies.write(tmp_path / "source/a/notes.txt", b"not a video")
    prepared = prepare("video_folder", tmp_path / "source", tmp_path / "data")
    assert prepared.examples == {"train": 8, "val": 2}
    assert [n[:54] for n in prepared.notes] == [
        "left out 1 file without the ending of a video (.avi, ."
    ]
    assert prepared.notes[0].endswith("such as a/notes.txt")
    ids = {e["id"] for examples in opened(prepared, tmp_path / "data").values() for e in examples}
    assert len(ids) == 10


def test_other_layouts_of_kinetics400(copied, tmp_path):
    """Lists beside the folders, ``validate.csv``, and directories of classes."""
    source = copied("kinetics400")
    shutil.move(source / "annotations/train.csv", source / "train.csv")
    shutil.move(source / "annotations/val.csv", source / "validate.csv")
    (source / "val/a class").mkdir()
    for path in source.glob("val/*.mp4"):
        path.rename(source / "val/a class" / path.name)
    assert prepare("kinetics400", source, tmp_path / "data").examples == movies.EXAMPLES


# ---------------------------------------------------------------------------------------------
# Storage.


@pytest.fixture
def large(tmp_path):
    """A folder with one video of 160x90 pixels in each split, in the colors of BT.709."""
    wide = movies.video(70, (90, 160), gop=250, options=(("colorspace", "bt709"),))
    for split in ("train", "val"):
        movies.write(tmp_path / f"large/{split}/a/{split}.mp4", wide)
    return tmp_path / "large", wide


@pytest.mark.parametrize("storage", _encode.STORAGES)
def test_how_videos_are_stored(storage, large, tmp_path):
    source, wide = large
    prepared = prepare("video_folder", source, tmp_path / "data", storage=storage, short_side=45)
    video = opened(prepared, tmp_path / "data")["train"][0]["video"]
    assert video.num_frames == 70
    original = movies.decoded(wide)
    frames = video.read([0, 33, 69])
    if storage == "copy":
        assert video.size == (90, 160)
        np.testing.assert_array_equal(frames, original[[0, 33, 69]])
        return
    assert video.size == (44, 80)  # even
    steps = np.diff(video.index.key_frames)
    assert steps.max() == (32 if storage == "h264" else 1)
    # The borders of the squares are smoothed.
    reduced = original[[0, 33, 69], 1::2, 1::2][:, :44]
    assert np.median(np.abs(frames.astype(int) - reduced)) <= 2


def test_small_videos_are_not_enlarged_and_have_new_key_frames(tmp_path):
    for split in ("train", "val"):
        movies.write(tmp_path / f"source/{split}/a/{split}.mp4", movies.video(gop=8))
    prepared = prepare("video_folder", tmp_path / "source", tmp_path / "data", short_side=4096)
    video = opened(prepared, tmp_path / "data")["val"][0]["video"]
    assert video.size == movies.SIZE
    assert video.index.key_frames.tolist() == [0, 32]


def test_rotated_videos_are_stored_upright(tmp_path):
    for split in ("train", "val"):
        movies.write(tmp_path / f"source/{split}/a/{split}.mp4", movies.video(4, rotation=90))
    prepared = prepare("video_folder", tmp_path / "source", tmp_path / "data")
    video = opened(prepared, tmp_path / "data")["train"][0]["video"]
    expected = np.rot90(movies.decoded(movies.video(4)), axes=(1, 2))
    assert video.size == (64, 48)
    assert np.abs(video.read(range(4)).astype(int) - expected).mean() < 3


# ---------------------------------------------------------------------------------------------
# Interruptions.


def test_a_killed_command_continues(archives, tmp_path):
    """SIGKILL after three of eight videos."""
    source, directory = archives["kinetics400"], tmp_path / "data"
    code = f"""
import os, signal
from nonlocal_jax import data
from nonlocal_jax.data.datasets import _encode

encode, done = _encode.encode, []

def killed(*arguments):
    if len(done) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(arguments)
    return encode(*arguments)

_encode.encode = killed
data.prepare_dataset("kinetics400", {str(source)!r}, {str(directory)!r})
"""
    process = subprocess.run([sys.executable, "-c", code], env=child_environment())
    assert process.returncode == -signal.SIGKILL
    kept = list(directory.glob("kinetics400/.1.0.0.videos/*.npz"))
    assert len(kept) >= 1
    times = {path.name: path.stat().st_mtime_ns for path in kept}
    encoded = []
    encode = _encode.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_encode, "encode", lambda *a: encoded.append(a) or encode(*a))
        prepared = prepare("kinetics400", source, directory)
    assert len(encoded) == 8 - len(times)
    assert prepared.examples == movies.EXAMPLES
    assert [path.name for path in prepared.directory.parent.iterdir()] == ["1.0.0"]
    for examples in opened(prepared, directory).values():
        for example in examples:
            (path,) = source.rglob(f"{example['id']}.mp4")
            original = movies.decoded(path.read_bytes())
            stored = example["video"].read(range(example["num_frames"]))
            assert np.abs(stored.astype(int) - original).mean() < 3


def test_a_file_that_was_replaced_is_encoded_again(copied, tmp_path, monkeypatch):
    source = copied("video_folder")
    (source / "val/running/5.mp4").write_bytes(b"")
    refused("video_folder", source, tmp_path / "data")
    encoded = []
    encode = _encode.encode
    monkeypatch.setattr(_encode, "encode", lambda *a: encoded.append(a) or encode(*a))
    movies.write(source / "val/running/5.mp4", movies.video(6))
    movies.write(source / "train/running/0.mp4", movies.video(7))
    prepared = prepare("video_folder", source, tmp_path / "data")
    assert len(encoded) == 2
    numbers = {e["id"]: e["num_frames"] for e in opened(prepared, tmp_path / "data")["train"]}
    assert numbers["train/running/0"] == 7


def test_a_full_disk_ends_the_command(archives, tmp_path, monkeypatch):
    """Videos that cannot be written are not damaged, and must not be left out."""

    def full(path, data):
        raise InputError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(_encode, "write_file", full)
    lines = refused("kinetics400", archives["kinetics400"], tmp_path / "data", allow_missing=100)
    assert has_line(lines, "No space left on device")


# ---------------------------------------------------------------------------------------------


def test_videos_are_not_cached(archives, tmp_path):
    prepare("charades", archives["charades"], tmp_path / "data")
    source = data.load_source("charades", "train", tmp_path / "data")
    with pytest.raises(InputError, match=r"'ID000' is a video.*data.cache cannot be used"):
        data.cached(source, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_fingerprints_cover_the_classes_of_videos():
    video = data.FrameArray(movies.frames(2))
    sources = [[{"video": video, "label": label, "id": "a"}] for label in (1, 2, (1, 2), (1,), ())]
    assert len({data.fingerprint(source) for source in sources}) == len(sources)
