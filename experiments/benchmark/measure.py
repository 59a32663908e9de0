"""What a call takes of time and of the process' resident memory."""

import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable

import jax


def _status_kib(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise KeyError(field)


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def measure(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds that ``run`` takes, and MiB that resident memory rises by meanwhile."""
    linux = sys.platform == "linux"
    if linux:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
        before = _status_kib("VmRSS")
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    jax.block_until_ready(run())
    seconds = time.perf_counter() - start
    if linux:
        peak = _status_kib("VmHWM")
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return seconds, (peak - before) / 1024
