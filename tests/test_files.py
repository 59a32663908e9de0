import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from unittest.mock import Mock

import pytest

from nonlocal_jax import _files
from nonlocal_jax._files import (
    absolute_path,
    as_path,
    local_path,
    make_directory,
    replacing,
    write_file,
)
from nonlocal_jax.errors import InputError
from tests.helpers import bucket_in_memory, child_environment


def test_a_file_is_replaced_completely(tmp_path):
    path = tmp_path / "a"
    write_file(path, "first")
    with replacing(path) as partial:
        partial.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert os.listdir(tmp_path) == ["a"]


def test_after_an_error_the_old_file_is_unchanged(tmp_path):
    path = tmp_path / "a"
    write_file(path, b"old")

    def fail():
        with replacing(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "usual").touch()
    with replacing(tmp_path / "a") as partial:
        partial.write_text("x")
        os.chmod(partial, 0o600)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_the_message_names_the_path(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*file/a: Not a directory"):
        write_file(tmp_path / "file" / "a", "x")
    (tmp_path / "directory").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*directory: Is a directory"):
        write_file(tmp_path / "directory", "x")
    assert sorted(os.listdir(tmp_path)) == ["directory", "file"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_file(path, b"old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match=r"cannot write .*a: disk full"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_an_empty_path_is_not_the_current_directory():
    with pytest.raises(InputError, match="empty"):
        make_directory("")


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/a") == tmp_path / "a"
    assert os.fspath(as_path("~$draft.png")) == "~$draft.png"


def test_paths_that_are_neither_local_nor_in_a_usable_bucket_are_refused(tmp_path, monkeypatch):
    """Nothing is written to a directory "gs:"."""
    monkeypatch.chdir(tmp_path)
    for path in ("s3://bucket/run", "gs:/bucket/run"):  # the second one is a path of pathlib
        for function in (as_path, make_directory):
            with pytest.raises(InputError, match=rf"'{path}'; use gs://BUCKET/PATH or"):
                function(path)
    with pytest.raises(InputError, match="'gs://bucket/run', but it cannot be in a bucket"):
        local_path("gs://bucket/run")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"gcsfs is not installed; run pip"):
        make_directory("gs://bucket/run")
    assert not os.listdir(tmp_path)


def test_files_in_a_bucket_are_whole_objects(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = bucket_in_memory(monkeypatch)
    run = make_directory("gs://bucket/run")
    assert absolute_path("gs://bucket/run") == run
    assert not objects
    write_file(run / "a", "first")
    with replacing(run / "a") as partial:
        partial.write_text("second")
        assert (run / "a").read_text() == "first"
    assert list(objects) == ["/bucket/run/a"]
    assert objects["/bucket/run/a"].getvalue() == b"second"
    monkeypatch.setattr(type(run), "write_bytes", Mock(side_effect=RuntimeError("403, denied")))
    for write, path in ((make_directory, run), (functools.partial(write_file, data=""), run / "a")):
        message = rf"cannot write (to the directory )?{path}: 403, denied; check the path"
        with pytest.raises(InputError, match=message):
            write(path)
    assert not os.listdir(tmp_path)


def test_two_threads_may_write_the_same_file(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as partial:
        partial.write_text("first")
        thread = threading.Thread(target=write_file, args=(path, "second"))
        thread.start()
        thread.join()
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_leaves_is_removed_by_the_next_one(tmp_path):
    """Also the file that safetensors writes next to the one that it is given."""
    script = """
import os, signal, sys
from nonlocal_jax._files import replacing
with replacing(sys.argv[1]) as partial:
    partial.write_text("half")
    partial.with_name(".tmp").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", script, tmp_path / "model.safetensors"]
    for _ in range(2):
        subprocess.run(command, env=child_environment(), check=False)
        (left,) = tmp_path.iterdir()
        assert sorted(os.listdir(left)) == [".lock", ".tmp", "model.safetensors"]
    with replacing(tmp_path / "other") as partial:
        assert sorted(os.listdir(tmp_path)) == [partial.parent.name]
        # This process is alive.
        subprocess.run(command, env=child_environment(), check=False)
        assert partial.exists()
    write_file(tmp_path / "model.safetensors", "whole")
    assert "other" in os.listdir(tmp_path)


@pytest.mark.parametrize("locked", [False, True])
def test_a_directory_that_another_process_takes_for_abandoned_is_replaced(
    tmp_path, monkeypatch, locked
):
    """It removed the directory before this process locked it, or tried to lock it."""
    results = [locked, True]

    def try_lock(descriptor):
        if len(results) == 2:
            (directory,) = tmp_path.iterdir()
            shutil.rmtree(directory)
        return results.pop(0)

    monkeypatch.setattr(_files, "try_lock", try_lock)
    write_file(tmp_path / "a", "x")
    assert not results
    assert os.listdir(tmp_path) == ["a"]


def test_only_abandoned_directories_of_this_host_are_removed(tmp_path):
    with replacing(tmp_path / "a") as partial:
        name = partial.parent.name
    (tmp_path / "b" / name).mkdir(parents=True)  # killed before it had a lock
    other = tmp_path / "b" / name.replace("@", "@other.")
    other.mkdir()
    (other / ".lock").touch()
    write_file(tmp_path / "b/a", "x")
    assert sorted(os.listdir(tmp_path / "b")) == sorted([other.name, "a"])


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def record_replace(source, target):
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    write_file(tmp_path / "a", "x")
    assert calls == ["a", "replace", tmp_path.name]
