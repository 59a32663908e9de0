import os
import signal

from nonlocal_jax.data.datasets import _build
from tests.data import archives, movies


def test_a_folder_is_prepared_and_described(command, tmp_path):
    source = archives.folder(tmp_path / "source")
    arguments = ["prepare", "folder", "--name=leaves", f"--source={source}"]
    arguments.append(f"--data-dir={tmp_path / 'data'}")
    status, out, err = command(*arguments)
    assert status == 0
    assert out.splitlines() == [
        f"prepared leaves in {tmp_path}/data/leaves/1.0.0",
        "examples: 4 train, 2 val",
        "classes:  3 (road, tree, sky)",
    ]
    assert "checking: image 6 of 6" in err
    assert "writing: image 6 of 6" in err
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert "leaves is already prepared in" in out


def test_all_problems_are_printed_and_nothing_is_left(command, tmp_path):
    source = archives.ade20k(tmp_path / "source", {"train": 2, "val": 1})
    next(source.rglob("training/*.png")).write_bytes(b"")
    data_dir = f"--data-dir={tmp_path / 'data'}"
    status, out, err = command("prepare", "ade20k", f"--source={source}", data_dir)
    assert (status, out) == (2, "")
    assert "error: ade20k was not prepared from" in err
    assert "train has 2 examples instead of 20,210" in err
    assert "is damaged" in err
    assert not (tmp_path / "data").exists()


def test_sigterm_leaves_nothing(command, tmp_path, monkeypatch):
    source = archives.folder(tmp_path / "source")
    monkeypatch.setattr(_build, "_close", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        status, out, _ = command(
            "prepare", "folder", "--name=x", f"--source={source}", f"--data-dir={tmp_path}/data"
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (status, out) == (128 + signal.SIGTERM, "")
    assert not (tmp_path / "data").exists()


def test_arguments_are_checked(command, tmp_path):
    source = f"--source={tmp_path}"
    for arguments, message in (
        ([source], "give the name of one dataset"),
        (["cityscapes"], "missing --source"),
        (["cityscape", source], "cannot be prepared; use cityscapes, ade20k,"),
    ):
        status, _, err = command("prepare", *arguments)
        assert status == 2
        assert message in err


def test_videos_are_left_out_by_name(command, tmp_path):
    source = movies.kinetics400(tmp_path / "source", {"train": 3, "val": 1})
    next(source.rglob("*_000007_000017.mp4")).write_bytes(b"")
    arguments = ["prepare", "kinetics400", f"--source={source}", f"--data-dir={tmp_path / 'data'}"]
    status, out, err = command(*arguments, "--storage=jpeg", "--short_side=32")
    assert (status, out) == (2, "")
    assert "a problem; --allow_missing=N leaves out" in err
    assert "-id_1xyz_000007_000017.mp4 is damaged" in err
    assert "Traceback" not in err
    status, out, err = command(*arguments, "--allow_missing=1", "--storage=jpeg", "--short_side=32")
    assert status == 0
    assert "left out: train/-id_1xyz_000007_000017.mp4 is damaged" in err
    assert out.splitlines()[1:] == [
        "examples: 2 train, 1 val",
        "classes:  3 (archery, indoors, zumba, \u00e9crire)",
    ]
