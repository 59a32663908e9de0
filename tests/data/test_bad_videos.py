"""Videos and lists that are refused, and videos that are left out."""

import shutil

import numpy as np
import pytest

from nonlocal_jax import data
from nonlocal_jax.data.datasets import prepare as prepare_module
from nonlocal_jax.data.datasets._layout import draw_val
from nonlocal_jax.errors import InputError
from tests.data import movies
from tests.data.test_prepare import has_line
from tests.data.test_prepare_videos import opened, prepare, refused


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return movies.all_archives(tmp_path_factory.mktemp("archives"))


@pytest.fixture
def copied(archives, tmp_path):
    return lambda kind: movies.copy(archives[kind], tmp_path / "source")


def test_all_bad_videos_are_listed_and_then_left_out(copied, tmp_path):
    source = copied("kinetics400")
    bad = movies.bad_videos()
    paths = sorted(source.glob("train/*.mp4"))
    for path, content in zip(paths[:4], bad.values(), strict=False):
        path.write_bytes(content)
    lost, silent = sorted(source.glob("val/*.mp4"))[:2]
    lost.unlink()
    silent.write_bytes(bad["sound"])
    lines = refused("kinetics400", source, tmp_path / "data")
    assert "6 problems; --allow_missing=N leaves out N missing or damaged videos" in lines[0]
    assert len(lines) == 7
    for path in (*paths[:4], lost, silent):
        assert has_line(lines, f"  {path.relative_to(source)} ")
    assert has_line(lines, lost.name, "is missing, but a list contains it")
    assert has_line(lines, paths[0].name, "is damaged or not a video", "bytes); replace the file")
    assert has_line(lines, paths[1].name, "(Invalid data found when processing input, 0 bytes)")
    assert has_line(lines, silent.name, "has no video that can be decoded")
    assert len(refused("kinetics400", source, tmp_path / "data", allow_missing=5)) == 7
    prepared = prepare("kinetics400", source, tmp_path / "data", allow_missing=6)
    assert prepared.examples == {"train": 1, "val": 1}
    assert [f"left out:{line[1:]}" for line in lines[1:]] == prepared.notes


def test_a_truncated_video_has_fewer_frames(copied, tmp_path):
    source = copied("video_folder")
    whole = movies.video(faststart=True)
    start = whole.index(b"mdat") + 4
    cut = whole[: start + (len(whole) - start) * 6 // 10]
    movies.write(source / "train/running/cut.mp4", cut)
    prepared = prepare("video_folder", source, tmp_path / "data")
    (note,) = prepared.notes
    assert note.startswith("train/running/cut.mp4: ")
    assert note.endswith(" of 40 frames can be decoded")
    train = opened(prepared, tmp_path / "data")["train"]
    (example,) = (example for example in train if example["id"].endswith("cut"))
    assert f": {example['num_frames']} of 40" in note
    assert 5 < example["num_frames"] < 40


def test_variable_frame_rates_are_kept(copied, tmp_path):
    source = copied("video_folder")
    data_ = movies.video(5, stamps=(0, 1, 20, 21, 90))
    movies.write(source / "train/running/vfr.mp4", data_)
    train = opened(prepare("video_folder", source, tmp_path / "data"), tmp_path / "data")["train"]
    (example,) = (example for example in train if example["id"].endswith("vfr"))
    assert example["num_frames"] == 5
    stored = example["video"].read(range(5))
    assert np.abs(stored.astype(int) - movies.decoded(data_)).mean() < 3


def test_wrong_lists_of_kinetics400(copied, tmp_path):
    source = copied("kinetics400")
    columns = ("label", "youtube_id", "time_start", "time_end", "split")
    key = "-id_0xyz"
    rows = [
        ["zumba", key, 0, 10, "train"],
        ["zumba", key, 0, 10, "train"],
        ["zumba", key, "0.5", 10, "train"],
        ["zumba", key],
    ]
    movies.write_table(source / "annotations/train.csv", columns, rows)
    rows = [["skiing", "-id_5xyz", 35, 45, "val"], ["zumba", "-id_6xyz", 42, 52, "val"]]
    movies.write_table(source / "annotations/val.csv", columns, rows)
    shutil.copy(
        source / "train/-id_1xyz_000007_000017.mp4", source / "train/-id_1xyz_000007_000017.webm"
    )
    lines = refused("kinetics400", source, tmp_path / "data")
    assert has_line(lines, "'-id_0xyz_000000_000010' is in train and in train")
    assert has_line(lines, "line 4 of annotations/train.csv has the times '0.5' to '10'")
    assert has_line(lines, "line 5 of annotations/train.csv has no time_start and no time_end")
    assert has_line(lines, "line 2 of annotations/val.csv has the label 'skiing'")
    assert has_line(lines, "000017.mp4 and train/-id_1xyz_000007_000017.webm have the same id")
    assert len(lines) == 6
    assert "--allow_missing" not in lines[0]  # it would not help
    movies.write_table(source / "annotations/val.csv", ("label", "id", "time_start"), [])
    (source / "annotations/train.csv").unlink()
    lines = refused("kinetics400", source, tmp_path / "data")
    assert has_line(lines, "annotations/val.csv has no column youtube_id and no column time_end")
    assert has_line(lines, "there is no annotations/train.csv; see docs/datasets.md")
    assert has_line(lines, "train has no examples")


def test_wrong_lists_of_charades(copied, tmp_path):
    source = copied("charades")
    rows = [["ID000", "c157 0 1"], ["ID001", "c001 1.0"], ["ID002", "c001 0 1"], ["ID002", ""]]
    movies.write_table(source / "Charades/Charades_v1_train.csv", ("id", "actions"), rows)
    path = source / "Charades/Charades_v1_test.csv"
    path.write_bytes(path.read_bytes() + b"\xff")
    (source / "Charades/Charades_v1_classes.txt").write_text("c000 Holding\n")
    lines = refused("charades", source, tmp_path / "data")
    assert has_line(lines, "line 2 of Charades/Charades_v1_train.csv has the action 'c157 0 1'")
    assert has_line(lines, "line 3 of Charades/Charades_v1_train.csv has the action 'c001 1.0'")
    assert has_line(lines, "'ID002' is in train and in train")
    assert has_line(lines, "Charades_v1_test.csv cannot be read", "save it as CSV in UTF-8")
    assert has_line(lines, "the 1 lines of Charades_v1_classes.txt are not c000 to c156")
    # Names in another order would be names of other classes.
    names = movies.CHARADES_CLASSES.splitlines(keepends=True)
    (source / "Charades/Charades_v1_classes.txt").write_text("".join(reversed(names)))
    lines = refused("charades", source, tmp_path / "data")
    assert has_line(lines, "the 157 lines of Charades_v1_classes.txt are not c000")
    (source / "Charades/Charades_v1_classes.txt").write_text("")
    lines = refused("charades", source, tmp_path / "data")
    assert has_line(lines, "Charades_v1_classes.txt is empty; add at least one line")


def test_the_lists_of_charades_are_whole(copied, tmp_path, monkeypatch):
    """Videos that are missing count, and may be left out."""
    source = copied("charades")
    (source / "Charades_v1_480/ID000.mp4").unlink()
    lines = refused("charades", source, tmp_path / "data", allow_missing=1, partial=False)
    assert has_line(lines, "train has 5 examples instead of 7,985")
    assert has_line(lines, "val has 3 examples instead of 1,863")
    monkeypatch.setitem(prepare_module._COUNTS, "charades", movies.EXAMPLES)
    prepared = prepare("charades", source, tmp_path / "data", allow_missing=1, partial=False)
    assert prepared.examples == {"train": 4, "val": 3}


def test_wrong_folders_of_videos(copied, tmp_path):
    source = copied("video_folder")
    movies.write(source / "val/swimming/a.mp4", movies.video(2))
    movies.write(source / "train/b.mp4", movies.video(2))
    lines = refused("video_folder", source, tmp_path / "data")
    assert has_line(lines, "val/swimming/a.mp4 has the label 'swimming', which no video of train")
    assert has_line(lines, "train/b.mp4 is not in the directory of a class")
    movies.write_table(source / "train.csv", ("video", "label"), [["none.mp4", "a"]])
    lines = refused("video_folder", source, tmp_path / "data")
    assert has_line(lines, "none.mp4 is missing, but line 2 of train.csv contains it")
    assert has_line(lines, "there is no val.csv")


def test_a_damaged_video_with_an_unknown_label_is_named(copied, tmp_path):
    source = copied("video_folder")
    movies.write(source / "val/swimming/a.mp4", movies.bad_videos()["text"])
    lines = refused("video_folder", source, tmp_path / "data")
    assert has_line(lines, "val/swimming/a.mp4 has the label 'swimming', which no video of train")
    assert has_line(lines, "val/swimming/a.mp4 is damaged or not a video")
    assert len(lines) == 3


def test_a_missing_video_of_train_has_a_label(copied, tmp_path):
    """Its class is known, so the videos of val with the same label are not refused."""
    source = copied("video_folder")
    rows = [["train/running/0.mp4", "run"], ["none.mp4", "jump"]]
    movies.write_table(source / "train.csv", ("video", "label"), rows)
    rows = [["val/running/5.mp4", "run"], ["val/jumping/6.mp4", "jump"]]
    movies.write_table(source / "val.csv", ("video", "label"), rows)
    lines = refused("video_folder", source, tmp_path / "data")
    assert len(lines) == 2
    assert has_line(lines, "none.mp4 is missing, but line 3 of train.csv contains it")
    prepared = prepare("video_folder", source, tmp_path / "data", allow_missing=1)
    assert prepared.examples == {"train": 1, "val": 2}
    assert prepared.dataset.classes == ("jump", "run")


def test_the_only_video_of_a_class_is_in_train(tmp_path):
    """Without splits, val is drawn."""
    source = tmp_path / "source"
    for name in (only := "l/0.mp4"), *(others := [f"running/{i}.mp4" for i in range(9)]):
        movies.write(source / name, movies.video(2))
    assert set(draw_val([only, *others])) == {only, others[1]}
    prepared = prepare("video_folder", source, tmp_path / "data")
    assert prepared.examples == {"train": 9, "val": 1}
    assert prepared.dataset.classes == ("l", "running")
    (source / only).write_bytes(movies.bad_videos()["text"])
    lines = refused("video_folder", source, tmp_path / "damaged")
    assert len(lines) == 2
    assert has_line(lines, f"{only} is damaged or not a video")


@pytest.mark.parametrize("kind", movies.ARCHIVES)
def test_an_empty_source_names_what_is_missing(kind, tmp_path):
    (tmp_path / "source").mkdir()
    lines = refused(kind, tmp_path / "source", tmp_path / "data")
    assert has_line(lines, "train has no examples")
    if kind != "video_folder":
        assert has_line(lines, "there is no", "docs/datasets.md")


def test_options_are_checked(archives, tmp_path):
    source = archives["kinetics400"]
    for options, message in (
        ({"storage": "h265"}, "--storage=h265 is unknown; use one of h264, jpeg, copy"),
        ({"short_side": 8}, "--short_side=8 is too small; use at least 16$"),
        ({"allow_missing": -1}, "--allow_missing=-1 is negative; use 0 or more$"),
    ):
        with pytest.raises(InputError, match=message):
            data.prepare_dataset("kinetics400", source, tmp_path, **options)
        with pytest.raises(InputError, match="are for videos, and ade20k has none"):
            data.prepare_dataset("ade20k", source, tmp_path, **options)
    with pytest.raises(InputError, match="'charades' is reserved"):
        data.prepare_dataset("video_folder", source, tmp_path, name="charades")
