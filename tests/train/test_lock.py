"""One run at a time in a work directory."""

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from nonlocal_jax.errors import InputError
from nonlocal_jax.train import _lease, _lock
from nonlocal_jax.train._lease import Lease
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


@pytest.fixture
def leases(tmp_path, monkeypatch):
    """A function that makes a lease of a run, on a local object store."""
    for name in ("_RENEW", "_WATCH", "_POLL"):
        monkeypatch.setattr(_lease, name, 0.05)
    made = []

    def make(seconds=100, **holder):
        made.append(Lease(f"file://{tmp_path}/.lock", seconds))
        made[-1]._holder |= holder
        return made[-1]

    yield make
    for lease in made:
        lease._released.set()


def _wait_for(lease):
    while lease.acquire():
        time.sleep(0.01)


_ELSEWHERE = {"machine": "elsewhere", "host": "far", "pid": 7}


def test_a_lease_is_refused_to_others_and_released(leases, tmp_path):
    lease = leases()
    assert lease.acquire() == 0
    message = rf"\(process {os.getpid()} on {socket.gethostname()}, since 20\d\d-.*\); stop it or"
    with pytest.raises(InputError, match=message):
        leases().acquire()
    time.sleep(0.2)
    lease.check()
    lease.release()
    assert not list(tmp_path.iterdir())


def test_on_another_host_a_holder_is_refused_as_soon_as_it_renews(leases):
    assert leases(**_ELSEWHERE).acquire() == 0
    with pytest.raises(InputError, match=r"uses file:.*process 7 on far, since"):
        _wait_for(leases())


def test_the_lease_of_a_killed_process_is_free_at_once_or_when_it_is_over(
    leases, capsys, monkeypatch
):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    killed = leases(pid=gone.pid)
    assert killed.acquire() == 0
    killed._released.set()
    killed._thread.join()
    elsewhere = leases(**_ELSEWHERE)
    assert elsewhere.acquire() == 0
    # It was only suspended, and notices.
    killed._released.clear()
    killed._keep()
    with pytest.raises(InputError, match=r"has lost its lease .*another run has taken it"):
        killed.check()
    elsewhere._released.set()
    elsewhere._thread.join()
    late = leases()
    for _ in range(3):
        assert late.acquire() > 0
        time.sleep(0.1)
    message = r"process 7 on far has not renewed .*; if it was killed, this run starts in \d+ s"
    assert len(re.findall(message, capsys.readouterr().out)) == 1
    # The clocks of two hosts may differ. What counts is how long this host has seen no renewal.
    wall, now = time.time, time.monotonic
    monkeypatch.setattr(time, "time", lambda: wall() + 200)
    assert late.acquire() > 0
    # Of two that see that it is over, one gets it.
    stale = late._store.read("").result().stamp.generation
    monkeypatch.setattr(time, "monotonic", lambda: now() + 200)
    assert late.acquire() == 0
    assert not leases()._write(stale)
    late.check()


class _Slow:
    """An object store that is out of reach for some seconds."""

    def __init__(self, store):
        self._store = store
        self.reachable = threading.Event()

    def __getattr__(self, name):
        self.reachable.wait()
        return getattr(self._store, name)


def test_a_holder_without_network_notices_by_its_own_clock(leases, monkeypatch):
    monkeypatch.setattr(_lease, "_PATIENCE", 0.1)
    lease = leases(seconds=0.4)
    assert lease.acquire() == 0
    lease._store = slow = _Slow(lease._store)
    begin = time.monotonic()
    lease.check()
    time.sleep(0.5)
    with pytest.raises(InputError, match=r"has lost its lease .*not renewed for \d s\); this proc"):
        lease.check()
    # The end of a run does not wait for the network.
    lease.release()
    assert time.monotonic() - begin < 2
    slow.reachable.set()


def test_a_lease_counts_from_before_its_write(leases):
    lease = leases(seconds=0.4)
    absent = lease._store.read("").result().stamp.generation
    lease._store = slow = _Slow(lease._store)
    threading.Timer(0.5, slow.reachable.set).start()
    assert lease._write(absent)
    with pytest.raises(InputError, match="not renewed"):
        lease.check()


def test_a_write_whose_answer_is_lost_is_repeated(leases):
    lease, absent = leases(), leases()._store.read("").result().stamp.generation
    assert lease._write(absent)
    first = lease._generation
    assert lease._write(absent)
    assert lease._generation != first
    assert lease._store.read("").result().stamp.generation == lease._generation


def test_a_signal_ends_the_wait_for_a_lease(leases, tmp_path, monkeypatch):
    holder = leases(**_ELSEWHERE)
    assert holder.acquire() == 0
    holder._released.set()
    monkeypatch.setattr(_lock, "is_bucket", lambda _: True)
    monkeypatch.setattr(_lock, "Lease", lambda url, seconds: leases(seconds))
    answers = iter([False, True])
    message = "stopped by a signal while waiting for the end of another run in .*; run the same"
    with (
        pytest.raises(InputError, match=message),
        locked(tmp_path, lambda: next(answers)),
    ):
        pass


def test_in_a_bucket_a_run_holds_a_lease(tmp_path, monkeypatch):
    made = []

    def make(url, seconds):
        made.append(Lease(f"file://{url}", seconds))
        assert seconds == 2 * 100
        return made[-1]

    monkeypatch.setattr(_lock, "is_bucket", lambda _: True)
    monkeypatch.setattr(_lock, "Lease", make)
    with locked(tmp_path) as check:
        with pytest.raises(InputError, match="another run uses"), locked(tmp_path):
            pass
        check()
        made[0]._is_taken = True
        with pytest.raises(InputError, match=r"lost its lease .* \(another run has taken it\)"):
            check()
        made[0]._is_taken = False
    assert not list(tmp_path.iterdir())


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
