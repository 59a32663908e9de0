"""Progress in a log and on a terminal."""

import itertools

import pytest

from nonlocal_jax import _progress as progress_module
from nonlocal_jax._progress import duration, progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min 0 s"), (129, "2 min 9 s"), (3600 * 27 + 65, "27 h 1 min")],
)
def test_a_duration_has_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.0912, "11 s per image"), (2.345, "2.35 per second"), (1040.3, "1,040 per second")],
)
def test_a_speed_is_easy_to_read(rate, text):
    assert progress_module._speed(rate, "image") == text


@pytest.fixture
def clock(monkeypatch):
    """A clock that is read once an item and goes on by one second each time."""
    monkeypatch.setattr(progress_module.time, "monotonic", itertools.count(0.0).__next__)


@pytest.mark.usefixtures("clock")
def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(capsys):
    assert list(progress(range(100, 125), 25, "evaluating")) == list(range(100, 125))
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: image 10 of 25, 1 per second, 15 s left",
        "evaluating: image 20 of 25, 1 per second, 5 s left",
        "evaluating: image 25 of 25, 1 per second, 0 s left",
    ]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress_module.sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress(range(3), 3, "evaluating")) == [0, 1, 2]
    assert "evaluating: 100%|" in capsys.readouterr().err


def test_a_closed_stderr_ends_nothing(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert list(progress(range(3), 3, "evaluating")) == [0, 1, 2]
    assert capsys.readouterr().out == ""
