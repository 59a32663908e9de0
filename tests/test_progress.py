"""Progress in a log and on a terminal."""

import itertools

import pytest

from nonlocal_jax import _progress as progress_module
from nonlocal_jax._progress import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that is read once an item and goes on by one second each time."""
    monkeypatch.setattr(progress_module.time, "monotonic", itertools.count(0.0).__next__)


@pytest.mark.usefixtures("clock")
def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(capsys):
    assert list(progress(range(100, 125), 25, "evaluating")) == list(range(100, 125))
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: 10/25,  1.00image/s, 00:15 left",
        "evaluating: 20/25,  1.00image/s, 00:05 left",
        "evaluating: 25/25,  1.00image/s, 00:00 left",
    ]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress_module.sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress(range(3), 3, "evaluating")) == [0, 1, 2]
    assert "evaluating: 100%|" in capsys.readouterr().err
