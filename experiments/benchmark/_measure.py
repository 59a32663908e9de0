"""Measures the time of programs in turns, and the resident memory of one call."""

import math
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from experiments.benchmark._cases import Program

# A sample should take at least this many seconds, so that the overhead of a call is negligible.
_SAMPLE_SECONDS = 0.05
_MAX_CALLS = 50


class Sample(NamedTuple):
    """Seconds per call: of wall-clock time, and of CPU time of all threads of this process."""

    wall: float
    cpu: float


def _sample(program: Program, calls: int) -> Sample:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        result = program.run()
    program.wait(result)
    return Sample((time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls)


def warm_up(program: Program) -> int:
    """Runs a program until its time is stable, and returns the number of calls per sample."""
    # On a GPU the second call may record a CUDA graph.
    for _ in range(2 if jax.default_backend() == "cpu" else 3):
        wall = _sample(program, 1).wall
    return min(math.ceil(_SAMPLE_SECONDS / wall), _MAX_CALLS)


def time_in_turns(
    programs: Mapping[str, tuple[Program, int]], repeats: int
) -> dict[str, list[Sample]]:
    """Times programs in turns, so that a disturbance of the machine affects all of them.

    Args:
      programs: Each program with its number of calls per sample.
      repeats: Number of turns. Each turn takes one sample of each program.
    """
    samples = {name: [] for name in programs}
    names = list(programs)
    for turn in range(repeats if names else 0):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(_sample(*programs[name]))
    return samples


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _status_kib(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise KeyError(field)


def measure_call(run: Callable[[], object]) -> tuple[float, float]:
    """Runs a function, and returns its seconds and the rise of resident memory in MiB."""
    linux = sys.platform == "linux"
    if linux:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
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
