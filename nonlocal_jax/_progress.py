"""Reports the progress of long loops: a bar on a terminal, a line every ten seconds in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

# Seconds between two lines of a log.
_INTERVAL = 10.0


def progress(
    iterable: Iterable[Item], total: int, description: str, unit: str = "image"
) -> Iterator[Item]:
    """Yields the items, and reports the count, the rate and the remaining time on stderr."""
    if sys.stderr.isatty():
        return iter(tqdm(iterable, total=total, desc=description, unit=unit))
    return _lines(iterable, total, description, unit)


def _lines(iterable: Iterable[Item], total: int, description: str, unit: str) -> Iterator[Item]:
    start = reported = time.monotonic()
    for count, item in enumerate(iterable, 1):
        yield item
        now = time.monotonic()
        if now - reported >= _INTERVAL or count == total:
            reported = now
            meter = tqdm.format_meter(
                count,
                total,
                now - start,
                unit=unit,
                bar_format="{n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left",
            )
            print(f"{description}: {meter}", file=sys.stderr, flush=True)
