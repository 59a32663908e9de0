"""Runs a case in all its forms: memory each in a fresh process, then time in turns in this one.

    python -m experiments.benchmark.runner '{"form": "ours", "name": "dot_product", ...}'

is that fresh process; it prints the peak, or the reason why there is none, as JSON.
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

from experiments.benchmark import ours, timing
from experiments.benchmark.cases import Case, Program
from experiments.benchmark.measure import measure
from nonlocal_jax.errors import first_line

_JSON = "peak: "


def build(case: Case, form: str) -> Program:
    """Compiles one form of a case."""
    if not form.startswith("torch_"):
        return ours.build(case, form)
    from experiments.benchmark import pytorch  # may not be installed

    return pytorch.build(case, form)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def device_memory() -> int:
    """Bytes of memory that JAX may use on its first device."""
    if jax.default_backend() == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return jax.devices()[0].memory_stats()["bytes_limit"]


def _release_heap() -> None:
    """Gives freed memory back to the system: on the heap it would hide the next rise."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def peak_mib(case: Case, form: str) -> float:
    """Peak memory of a form in this process, to be called once in it.

    On a CPU, what resident memory rises by during a second call. On an accelerator, what is in use,
    inputs and parameters counted; for our forms the tuning of kernels counts as well.
    """
    program = build(case, form)
    program.wait(program.run())
    if jax.default_backend() == "cpu":
        _release_heap()
        _, mib = measure(lambda: program.wait(program.run()))
        return mib
    if form.startswith("torch_"):
        from experiments.benchmark import pytorch

        return pytorch.peak_mib(program)
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20


def _peak_in_fresh_process(case: Case, form: str) -> dict[str, Any]:
    """``{"peak_mib": ...}`` or ``{"note": reason}``."""
    argument = json.dumps({"form": form, **dataclasses.asdict(case)})
    command = [sys.executable, "-m", "experiments.benchmark.runner", argument]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith(_JSON):
            return json.loads(line.removeprefix(_JSON))
    return {"note": f"not run: its process ended with status {done.returncode}"}


def _warmed_up(case: Case, form: str) -> tuple[Program, int] | str:
    try:
        program = build(case, form)
        return program, timing.warm_up(program)
    except Exception as error:  # compilers fail in many ways; the other forms go on
        return f"not run: {_reason(error)}"


def run(case: Case, forms: Sequence[str], *, repeats: int, memory: bool) -> list[dict[str, Any]]:
    """Measures the forms of a case.

    Returns:
      For each form ``{"form", "wall_seconds", "cpu_seconds", "peak_mib"}``, a sample a turn, or a
      ``"note"`` that says why it was not run.
    """
    results = {form: {"form": form} for form in forms}
    limit = device_memory()
    for form, result in results.items():
        if case.exceeds(form, limit):
            result["note"] = "not run: its N x N matrices do not fit"
        elif memory:
            result.update(_peak_in_fresh_process(case, form))

    programs = {}
    for form, result in results.items():
        if "note" not in result:
            warm = _warmed_up(case, form)
            if isinstance(warm, str):
                result["note"] = warm
            else:
                programs[form] = warm
    for form, samples in timing.paired(programs, repeats).items():
        results[form]["calls"] = programs[form][1]
        results[form]["wall_seconds"] = [sample.wall for sample in samples]
        results[form]["cpu_seconds"] = [sample.cpu for sample in samples]
    del programs
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].compiler.reset()  # it keeps a few compiled shapes of a function only
    return list(results.values())


def _main(argument: str) -> None:
    options = json.loads(argument)
    form = options.pop("form")
    case = Case(**{**options, "size": tuple(options["size"])})
    try:
        result = {"peak_mib": round(peak_mib(case, form), 1)}
    except Exception as error:
        result = {"note": f"not run: {_reason(error)}"}
    print(_JSON + json.dumps(result))


if __name__ == "__main__":
    _main(sys.argv[1])
