"""Times of several programs in turns, so that what disturbs one disturbs all."""

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax

from experiments.benchmark.cases import Program

# Seconds that a sample should take, so that starting and waiting do not count in it.
_SAMPLE = 0.05
_MOST_CALLS = 50


class Sample(NamedTuple):
    """Seconds a call, on the clock and of all threads of this process."""

    wall: float
    cpu: float


def _sample(program: Program, calls: int) -> Sample:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        result = program.run()
    program.wait(result)
    return Sample((time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls)


def warm_up(program: Program) -> int:
    """Runs a program until it is as fast as it gets; how many calls make a sample."""
    # On a GPU the second call may record a CUDA graph.
    for _ in range(2 if jax.default_backend() == "cpu" else 3):
        wall = _sample(program, 1).wall
    return min(math.ceil(_SAMPLE / wall), _MOST_CALLS)


def paired(programs: Mapping[str, tuple[Program, int]], repeats: int) -> dict[str, list[Sample]]:
    """Samples of programs with their numbers of calls: one of each, in turns, ``repeats`` times."""
    samples = {name: [] for name in programs}
    names = list(programs)
    for turn in range(repeats if names else 0):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(_sample(*programs[name]))
    return samples
