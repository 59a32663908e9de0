import contextlib
import json
import math
import os
import subprocess
import sys
import time
import types

import jax.numpy as jnp
import pytest

from nonlocal_jax._files import write_file
from nonlocal_jax.errors import InputError
from nonlocal_jax.train import NonFiniteError, log, loop
from nonlocal_jax.train._next_batch import NextBatch
from nonlocal_jax.train.log import Monitor, RunLog
from tests.helpers import bucket_in_memory, read_metrics, train


@pytest.fixture(autouse=True)
def _without_tensorboard(monkeypatch):
    """Its files would stay open, because some tests do not close their logs."""
    monkeypatch.setitem(sys.modules, "tensorboardX.record_writer", None)


def _metrics(loss=1.0, grad_norm=1.0, param_norm=1.0):
    return {
        "loss": jnp.float32(loss),
        "grad_norm": jnp.float32(grad_norm),
        "param_norm": jnp.float32(param_norm),
        "accuracy": jnp.float32(0.5),
        "learning_rate": jnp.float32(0.1),
    }


def _monitor(tmp_path, **options):
    run_log = RunLog(tmp_path, 0, "miou")
    return run_log, Monitor(run_log, **{"steps": 7, "log_every": 3, "batch_size": 4, **options})


def test_one_json_object_a_logged_step(tmp_path, capsys):
    _, monitor = _monitor(tmp_path)
    for step in range(1, 8):
        monitor.add(step, _metrics(loss=step))
    monitor.flush()
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [3, 6, 7]
    assert [line["train/loss"] for line in lines] == [3.0, 6.0, 7.0]
    assert all(line["train/examples_per_second"] > 0 for line in lines)
    assert "step 7/7  loss 7  accuracy 0.5  learning_rate 0.1" in capsys.readouterr().out


def test_the_wait_for_data_is_logged_and_one_warning_is_given(tmp_path, capsys, monkeypatch):
    """Steps of a second; the devices wait for a part of the time between two records."""
    clock = iter(range(100))
    monkeypatch.setattr(log, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    _, monitor = _monitor(tmp_path)
    # The clock starts at step 1. What is waited before does not count.
    for step, waited in enumerate([9, 0.1, 0.1, 0.3, 0.3, 0.3, 1], 1):
        monitor.add(step, _metrics(), waited)
    monitor.flush()
    assert [line["train/data_wait"] for line in read_metrics(tmp_path)] == [0.1, 0.3, 1]
    lines = capsys.readouterr().out.splitlines()
    assert "10% waiting for data" in lines[0]
    assert [line.startswith("warning") for line in lines] == [False, False, True, False]
    assert "wait for data 30% of the time; set data.workers" in lines[2]
    assert "data.cache" in lines[2]


class Running:
    """A result that is ready after some time."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds

    def is_ready(self):
        return time.monotonic() >= self.end


def test_devices_that_compute_do_not_wait_for_data():
    def slow():
        for number in range(4):
            time.sleep(0.2)
            yield number

    with NextBatch(slow()) as next_batch:
        batch, waited = next_batch.take(None)
        assert (batch, waited) == (0, pytest.approx(0.2, abs=0.1))
        assert next_batch.take(Running(0.15)) == (1, pytest.approx(0.05, abs=0.04))
        assert next_batch.take(Running(10)) == (2, 0.0)
        time.sleep(0.3)  # the batch is taken in the meantime
        assert next_batch.take(Running(0)) == (3, 0.0)
        with pytest.raises(StopIteration):
            next_batch.take(None)


@pytest.mark.parametrize("bad", ["loss", "grad_norm", "param_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_step_that_is_not_finite_is_named(tmp_path, bad, value):
    _, monitor = _monitor(tmp_path, log_every=100)
    for step, metrics in enumerate([_metrics(), _metrics(**{bad: value}), _metrics(loss=-1)], 1):
        monitor.add(step, metrics)
    with pytest.raises(NonFiniteError, match=rf"{bad} is {value} at step 2, "):
        monitor.flush()


def test_records_beyond_the_restored_step_are_dropped(tmp_path):
    records = [
        {"step": 2, "train/loss": 3.0},
        {"step": 2, "val/miou": 0.5},
        {"step": 4, "train/loss": 2.0},
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 5, "lo')
    run_log = RunLog(tmp_path, 3, "miou")
    assert read_metrics(tmp_path) == run_log.records == records[:2]
    assert run_log.was_evaluated(2)
    assert not run_log.was_evaluated(4)
    run_log.add(4, "train", {"loss": 1.0})
    assert read_metrics(tmp_path)[-1] == {"step": 4, "train/loss": 1.0}
    assert run_log.latest() == {"step": 4, "train/loss": 1.0, "val/miou": 0.5}


def test_in_a_bucket_the_records_are_written_every_ten_seconds(monkeypatch):
    """And before a state is saved, and after an evaluation."""
    objects = bucket_in_memory(monkeypatch)
    writes, now = [], [0.0]
    monkeypatch.setattr(log, "write_file", lambda *file: writes.append(now[0]) or write_file(*file))
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run_log = RunLog("gs://bucket/run", 0, "miou")
    monitor = Monitor(run_log, steps=100, log_every=1, batch_size=4)
    for step in range(1, 26):
        now[0] = float(step)
        run_log.add(step, "train", {"loss": 1.0})
    assert writes == [0, 11, 22]
    monitor.flush()
    run_log.add_evaluation(25, {"miou": 0.5})
    monitor.flush()
    assert writes == [0, 11, 22, 25, 25]
    lines = objects["/bucket/run/metrics.jsonl"].getvalue().splitlines()
    assert [json.loads(line) for line in lines] == run_log.records
    assert RunLog("gs://bucket/run", 24, "miou").records == run_log.records[:24]


def test_a_run_that_has_lost_its_lease_writes_nothing(config, source, tmp_path, monkeypatch):
    """Here it is lost in an evaluation."""
    lost = []

    @contextlib.contextmanager
    def locked(*_):
        yield check

    def check():
        if lost:
            raise InputError("lost the lease")

    def evaluate(variables):
        lost.append((tmp_path / "metrics.jsonl").read_text())
        return {"miou": 0.5}

    monkeypatch.setattr(loop, "locked", locked)
    with pytest.raises(InputError, match="lost the lease"):
        train(config, tmp_path, source, evaluate=evaluate)
    assert [(tmp_path / "metrics.jsonl").read_text()] == lost
    assert not (tmp_path / "curves.png").exists()


def test_the_score_of_a_step_is_its_headline_metric(tmp_path):
    run_log = RunLog(tmp_path, 0, "miou")
    run_log.add(2, "train", {"loss": 1.0})
    for step, value in ((2, 0.5), (4, math.nan), (6, 0.25)):
        run_log.add_evaluation(step, {"miou": value, "accuracy": 1.0})
    assert run_log.scores() == {2: 0.5, 6: 0.25}


def test_damaged_lines_are_skipped_with_one_warning(tmp_path, caplog):
    good = [{"step": step, "train/loss": 1.0} for step in range(3)]
    odd = [b"\xff\xfe", b"[1, 2]", b'"text"', b"{", b"", b'{"loss": 1}', b'{"step": "1"}']
    odd += [b'{"step": 1, "train/loss": "x"}', b'{"step": 1, "x": null}', b"[" * 10**5]
    odd += [b'{"step": true}', b'{"step": 1, "x": 1' + b"0" * 400 + b"}", b'{"step": 1, "x": true}']
    first, *others = (json.dumps(record).encode() for record in good)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([first, *odd, *others, b'{"step": 3, "lo']))
    assert RunLog(tmp_path, 5, "miou").records == read_metrics(tmp_path) == good
    (message,) = caplog.messages
    numbers = ", ".join(str(number) for number in range(2, 2 + len(odd)))
    assert message == f"skipped what is no record in {path}, line {numbers}"


def test_a_closed_stdout_does_not_end_a_run(tmp_path, monkeypatch):
    """As in ``train | head -1``."""
    reader, writer = os.pipe()
    with open(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        run_log = RunLog(tmp_path, 0, "miou")
        run_log.say("first")
        os.close(reader)
        for _ in range(3):
            run_log.say("nobody reads this")
        # Python does this at its end.
        stdout.flush()
    run_log.say("the file is closed")


_SLOW = """
import sys, time
from experiments import cli
from nonlocal_jax.errors import InputError
from nonlocal_jax.train import _next_batch

def batches():
    yield 0
    time.sleep(600)

def main(arguments):
    _next_batch._PATIENCE = 0.1
    with _next_batch.NextBatch(batches()) as next_batch:
        next_batch.take(None)
        if arguments[1:]:
            raise InputError("it failed")
    print("done")

cli.run(main, positional=True)
"""


@pytest.mark.parametrize("fails", [True, False])
def test_data_that_are_slow_do_not_delay_the_end(fails):
    command = [sys.executable, "-c", _SLOW, *(["fail"] if fails else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    ends = (2, "", "error: it failed\n") if fails else (0, "done\n", "")
    assert (done.returncode, done.stdout, done.stderr) == ends
