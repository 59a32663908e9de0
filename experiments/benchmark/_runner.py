"""Measures all variants of a case: the memory in fresh processes, then the time in this process.

The fresh process of a variant prints its peak memory as JSON, or the reason why there is none:

    python -m experiments.benchmark._runner '{"variant": "ours", "name": "dot_product", ...}'
"""

import ctypes
import dataclasses
import gc
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax

from experiments.benchmark import _measure, _ours
from experiments.benchmark._cases import Case, Program
from nonlocal_jax.errors import first_line

_JSON = "peak: "


def build(case: Case, variant: str) -> Program:
    """Compiles a variant of a case."""
    if not variant.startswith("torch_"):
        return _ours.build(case, variant)
    from experiments.benchmark import _pytorch  # needs torch

    return _pytorch.build(case, variant)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def device_memory() -> int:
    """Returns the bytes of memory that JAX may use on the first device."""
    if jax.default_backend() == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return jax.devices()[0].memory_stats()["bytes_limit"]


def _release_heap() -> None:
    """Returns freed memory to the system, because a call that reuses it does not raise the peak."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def peak_mib(case: Case, variant: str) -> float:
    """Returns the peak memory of a variant. Call this once per process.

    On a CPU, this is the rise of resident memory during the second call. On an accelerator, it is
    all memory in use, including inputs, parameters and, for our variants, what XLA needs to tune
    kernels.
    """
    program = build(case, variant)
    program.wait(program.run())
    if jax.default_backend() == "cpu":
        _release_heap()
        _, mib = _measure.measure_call(lambda: program.wait(program.run()))
        return mib
    if variant.startswith("torch_"):
        from experiments.benchmark import _pytorch

        return _pytorch.peak_mib(program)
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20


def _peak_in_fresh_process(case: Case, variant: str) -> dict[str, Any]:
    """Returns ``{"peak_mib": ...}`` or ``{"note": reason}``."""
    argument = json.dumps({"variant": variant, **dataclasses.asdict(case)})
    command = [sys.executable, "-m", "experiments.benchmark._runner", argument]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith(_JSON):
            return json.loads(line.removeprefix(_JSON))
    return {"note": f"not run: its process ended with status {done.returncode}"}


def _warmed_up(case: Case, variant: str) -> tuple[Program, int] | str:
    try:
        program = build(case, variant)
        return program, _measure.warm_up(program)
    except Exception as error:  # compilers fail in many ways; continue with the other variants
        return f"not run: {_reason(error)}"


def run(case: Case, variants: Sequence[str], *, repeats: int, memory: bool) -> list[dict[str, Any]]:
    """Measures variants of a case.

    Returns:
      For each variant a dict with ``"variant"``, ``"peak_mib"``, and one sample per turn in
      ``"wall_seconds"`` and ``"cpu_seconds"``. If a variant was not run, its dict has a ``"note"``
      with the reason instead.
    """
    results = {variant: {"variant": variant} for variant in variants}
    limit = device_memory()
    for variant, result in results.items():
        if case.exceeds(variant, limit):
            result["note"] = "not run: its N x N matrices do not fit into memory"
        elif memory:
            result.update(_peak_in_fresh_process(case, variant))

    programs = {}
    for variant, result in results.items():
        if "note" not in result:
            warm = _warmed_up(case, variant)
            if isinstance(warm, str):
                result["note"] = warm
            else:
                programs[variant] = warm
    for variant, samples in _measure.time_in_turns(programs, repeats).items():
        results[variant]["calls"] = programs[variant][1]
        results[variant]["wall_seconds"] = [sample.wall for sample in samples]
        results[variant]["cpu_seconds"] = [sample.cpu for sample in samples]
    del programs
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].compiler.reset()  # it caches only a few shapes of a function
    return list(results.values())


def _main(argument: str) -> None:
    options = json.loads(argument)
    variant = options.pop("variant")
    case = Case(**{**options, "size": tuple(options["size"])})
    try:
        result = {"peak_mib": round(peak_mib(case, variant), 1)}
    except Exception as error:
        result = {"note": f"not run: {_reason(error)}"}
    print(_JSON + json.dumps(result))


if __name__ == "__main__":
    _main(sys.argv[1])
