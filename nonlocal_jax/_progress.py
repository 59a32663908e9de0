"""Prints lines, and the progress of long loops: a bar on a terminal, or lines in a log."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

from nonlocal_jax import distributed

Item = TypeVar("Item")

# Seconds between two lines of a log.
_INTERVAL = 10.0


def duration(seconds: float) -> str:
    """Returns a duration with its units, such as "2 min 9 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _speed(per_second: float, unit: str) -> str:
    if per_second < 1:
        return f"{1 / per_second:.3g} s per {unit}"
    return f"{per_second:.3g} per second" if per_second < 100 else f"{per_second:,.0f} per second"


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a line on stdout or on another stream, unless its reader or its terminal is gone.

    Of several processes only process 0 prints.
    """
    if not distributed.is_first():
        return
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):  # a ValueError if the stream is closed
        # Python would fail at its end, because the text is still in the buffer of the stream.
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), stream.fileno())


def report_compilation(program: str) -> None:
    """Says on stderr that a program is compiled next, because nothing happens meanwhile."""
    say(f"compiling {program}; this takes minutes for a large network", sys.stderr)


def progress(
    iterable: Iterable[Item], total: int, description: str, unit: str = "image"
) -> Iterator[Item]:
    """Yields the items, and reports the count, the rate and the remaining time on stderr.

    Of several processes only process 0 reports.
    """
    if sys.stderr is None or not distributed.is_first():  # it was closed before Python started
        return iter(iterable)
    if sys.stderr.isatty():
        return iter(tqdm(iterable, total=total, desc=description, unit=f" {unit}"))
    return _lines(iterable, total, description, unit)


def _lines(iterable: Iterable[Item], total: int, description: str, unit: str) -> Iterator[Item]:
    start = reported = time.monotonic()
    for count, item in enumerate(iterable, 1):
        yield item
        now = time.monotonic()
        if now - reported >= _INTERVAL or count == total:
            reported, rate = now, count / max(now - start, 1e-9)
            say(
                f"{description}: {unit} {count} of {total}, {_speed(rate, unit)}, "
                f"{duration((total - count) / rate)} left",
                sys.stderr,
            )
