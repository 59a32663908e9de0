"""Signals, in this process. Runs in processes of their own are in test_restart.py."""

import os
import signal
import threading
import time

import jax
import numpy as np
import pytest

from nonlocal_jax.train import Checkpoints, _next_batch, _shutdown
from nonlocal_jax.train._shutdown import ShutdownRequest
from tests.helpers import read_metrics, train

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def default_handlers():
    """A process in the background of a shell starts with an ignored SIGINT."""
    defaults = (signal.SIG_DFL, signal.default_int_handler, signal.SIG_DFL)
    before = list(map(signal.signal, _SIGNALS, defaults))
    yield
    list(map(signal.signal, _SIGNALS, before))


@pytest.mark.parametrize("number", _SIGNALS)
def test_further_signals_within_a_second_are_ignored(monkeypatch, number):
    before = [signal.getsignal(number) for number in _SIGNALS]
    with ShutdownRequest() as shutdown:
        for later in (number, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(later)
            assert shutdown.signal == number
        monkeypatch.setattr(_shutdown, "_SAME_REQUEST", 0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in _SIGNALS] == before


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ShutdownRequest() as shutdown:
            signal.raise_signal(signal.SIGHUP)
            assert shutdown.signal is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class Source(list):
    """Examples, one of which takes long."""

    slow = None
    caching = False
    released = threading.Event()

    def __getitem__(self, index):
        if index == self.slow and self.caching:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        elif index == self.slow:
            signal.raise_signal(signal.SIGTERM)
            self.released.wait(60)
        return super().__getitem__(index)


def test_a_run_that_waits_for_data_or_evaluates_stops_and_resumes(
    config, source, tmp_path, monkeypatch
):
    def evaluate(variables):
        return {"miou": 0.5}

    def stop(variables):
        signal.raise_signal(signal.SIGHUP)
        time.sleep(60)

    expected = train(config, tmp_path / "alone", source, evaluate=evaluate)
    monkeypatch.setattr(_next_batch, "_PATIENCE", 0.1)
    slow = Source(source)
    slow.slow = 7
    start = time.monotonic()
    waiting = train(config, tmp_path / "run", slow, evaluate=evaluate)
    assert waiting.signal == signal.SIGTERM
    evaluating = train(config, tmp_path / "run", source, evaluate=stop)
    assert evaluating.signal == signal.SIGHUP
    assert time.monotonic() - start < 30
    slow.released.set()
    assert int(waiting.state.step) < int(evaluating.state.step) == 3
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()
    result = train(config, tmp_path / "run", source, evaluate=evaluate)
    assert result.signal is None
    for a, b in zip(*(jax.tree.leaves(r.state.params) for r in (result, expected)), strict=True):
        np.testing.assert_array_equal(a, b)
    evaluated = [
        [record["step"] for record in read_metrics(tmp_path / name) if "val/miou" in record]
        for name in ("run", "alone")
    ]
    assert evaluated == [[3, 6], [3, 6]]


def test_a_signal_counts_only_if_something_is_left_to_do(config, source, tmp_path, monkeypatch):
    def evaluate(variables):
        return {"miou": 0.5}

    def stop(*_):
        signal.raise_signal(signal.SIGTERM)

    config.steps = 1
    assert train(config, tmp_path, source, evaluate=stop).signal == signal.SIGTERM
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "__exit__", stop)
        assert train(config, tmp_path, source, evaluate=evaluate).signal is None


def test_a_run_that_caches_its_examples_stops(config, source, tmp_path):
    config.data.cache = str(tmp_path / "cache")
    slow = Source(source)
    slow.slow, slow.caching = 7, True
    result = train(config, tmp_path / "run", slow)
    assert (result.signal, int(result.state.step)) == (signal.SIGTERM, 0)
    assert not list((tmp_path / "cache").rglob("*"))
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
