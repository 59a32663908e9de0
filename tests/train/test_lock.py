"""One run at a time in a work directory."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from nonlocal_jax.errors import InputError
from nonlocal_jax.train._lock import locked
from tests.helpers import train
from tests.train import check_lock

# Holds a lock until it is killed.
_HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(60)
"""


def test_the_message_names_the_process(tmp_path):
    message = (
        rf"another run uses {tmp_path} \(process {os.getpid()} on {socket.gethostname()}, "
        r"since 20\d\d-.*\); stop it or wait for its end, or use another --workdir"
    )
    for _ in range(2):
        with locked(tmp_path), pytest.raises(InputError, match=message), locked(tmp_path):
            pass
        assert not list(tmp_path.iterdir())


def test_a_killed_process_loses_its_lock(tmp_path):
    command = [sys.executable, "-c", _HOLDER, tmp_path / ".lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(InputError, match=rf"uses {tmp_path}; stop it"), locked(tmp_path):
            pass
        holder.kill()
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_without_locks_a_run_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    def fail(descriptor, operation):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", fail)
    with locked(tmp_path):
        pass
    assert "has no locks; do not start two runs" in caplog.text


def test_a_refused_run_touches_nothing(config, source, tmp_path):
    """Not even the interrupted saves, which may be those of the other run."""
    run = tmp_path / "run"
    (run / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
    with locked(run):
        before = sorted(run.rglob("*"))
        with pytest.raises(InputError, match="another run uses"):
            train(config, run, source)
        assert sorted(run.rglob("*")) == before


def test_of_two_runs_one_goes_on(tmp_path, capsys):
    assert check_lock.check(tmp_path, starts=1), capsys.readouterr().out
