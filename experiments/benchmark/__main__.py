"""Times and memory of this project beside PyTorch's, paired in one run.

    python -m experiments.benchmark ops    --output=DIR --positions=4096,9409 --threads=1
    python -m experiments.benchmark models --output=DIR --networks=r50_nonlocal --sizes=512x1024

The same on CPU, GPU and TPU. "ours" is what implementation="auto" chooses. Where torch is
installed, its forms stand beside: eager (autocast in bfloat16), compiled (channels last; on a GPU
max-autotune), and compiled with the fused attention (sdpa). Forms take turns, so that what disturbs
one disturbs all; the memory of each is measured in a fresh process.

Writes DIR/ops.json with every sample, DIR/ops.md and, with matplotlib, DIR/ops.png, after every
case; models likewise.
"""

import importlib.util
import os
import pathlib
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
from absl import flags

from experiments import cli
from experiments.benchmark import report, runner
from experiments.benchmark.cases import BLOCKS, DTYPES, NETWORKS, Case, feature_map
from experiments.benchmark.measure import cores
from experiments.benchmark.operations import OPERATIONS
from nonlocal_jax._files import make_directory, replacing, write_file, write_json
from nonlocal_jax.errors import InputError

_OUTPUT = flags.DEFINE_string("output", None, "directory for the results", required=True)
_OPERATIONS = flags.DEFINE_list("operations", [*OPERATIONS, *BLOCKS], "of ops: what to measure")
_POSITIONS = flags.DEFINE_list("positions", ["4096", "8192", "9409"], "of ops: each N")
_CHANNELS = flags.DEFINE_integer(
    "channels", 256, "of ops: channels of theta, phi and g; blocks have twice as many", 1
)
_STD = flags.DEFINE_float(
    "std",
    Case.std,
    "of ops: standard deviation of the features; greater ones sharpen the softmax",
    0,
)
_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), "of models: what to measure")
_SIZES = flags.DEFINE_list("sizes", ["512x512", "512x1024", "769x769"], "of models: HEIGHTxWIDTH")
_WIDTH = flags.DEFINE_integer("width", 64, "of models: channels of the first stage", 8)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "by default 1 of ops, 2 of models", 1)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, DTYPES, "by default bfloat16 on an accelerator, float32 on a CPU"
)
_FORMS = flags.DEFINE_list(
    "forms", [], "forms to compare, the first with all others; ours, ours_dense and all of torch"
)
_GRADIENT = flags.DEFINE_enum(
    "gradient", "both", ["both", "with", "without"], "train steps are with, inference is without"
)
_REPEATS = flags.DEFINE_integer("repeats", 10, "samples of each form", 1)
_THREADS = flags.DEFINE_integer(
    "threads", None, "CPU cores to use; with one, times are CPU time; by default all", 1
)
_MEMORY = flags.DEFINE_boolean("memory", True, "measure memory, each form in a fresh process")


def _choices(flag: flags.FlagHolder, known: Sequence[str]) -> list[str]:
    for name in flag.value:
        if name not in known:
            raise InputError(f"--{flag.name} must be some of {','.join(known)}; got {name!r}")
    return list(dict.fromkeys(flag.value))


def _sizes() -> list[tuple[int, int]]:
    for size in _SIZES.value:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
            raise InputError(f"--sizes must be HEIGHTxWIDTH,...; got {size!r}")
    return [tuple(map(int, size.split("x"))) for size in dict.fromkeys(_SIZES.value)]


def _positions() -> list[int]:
    for positions in _POSITIONS.value:
        if not re.fullmatch(r"[1-9]\d*", positions):
            raise InputError(f"--positions must be positive integers; got {positions!r}")
    return list(dict.fromkeys(map(int, _POSITIONS.value)))


def _prepare_process() -> None:
    """Cores and memory, before JAX starts its threads and takes most of a GPU for itself."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if _THREADS.value:
        if sys.platform != "linux":
            raise InputError("--threads works on Linux only: leave it out")
        if _THREADS.value > cores():
            raise InputError(f"--threads must be at most {cores()}, the cores there are")
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-_THREADS.value :])


def _cases(kind: str, dtype: str) -> list[Case]:
    if kind == "ops":
        names = _choices(_OPERATIONS, [*OPERATIONS, *BLOCKS])
        sizes = [feature_map(n) for n in _positions()]
        batch_size, channels = _BATCH_SIZE.value or 1, _CHANNELS.value
    else:
        names, sizes = _choices(_NETWORKS, list(NETWORKS)), _sizes()
        batch_size, channels = _BATCH_SIZE.value or 2, _WIDTH.value
    gradients = {"both": (False, True), "with": (True,), "without": (False,)}[_GRADIENT.value]
    return [
        Case(name, size, batch_size, channels, dtype, backward, _STD.value)
        for name in names
        for size in sizes
        for backward in gradients
    ]


def _forms(cases: Sequence[Case], torch: bool) -> dict[Case, list[str]]:
    """The forms of each case: those asked for, or all but our other implementations."""
    known = dict.fromkeys(form for case in cases for form in case.forms())
    wanted = _choices(_FORMS, list(known)) or [
        form for form in known if form == "ours_dense" or not form.startswith("ours_")
    ]
    if not torch:
        if asked := [form for form in _FORMS.value if form.startswith("torch_")]:
            raise InputError(f"--forms={','.join(asked)} needs PyTorch on this device")
        wanted = [form for form in wanted if not form.startswith("torch_")]
    return {case: [form for form in wanted if form in case.forms()] for case in cases}


def _torch_version() -> str | None:
    """Of the PyTorch that runs on the same device as JAX, or None."""
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: its forms are left out", file=sys.stderr)
        return None
    import torch

    backend = jax.default_backend()
    if backend == "cpu" or (backend == "gpu" and torch.cuda.is_available()):
        return torch.__version__
    print(f"PyTorch does not run on this {backend}: its forms are left out", file=sys.stderr)
    return None


def _device() -> str:
    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    info = pathlib.Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return f"{names[0] if names else 'CPU'}, {cores()} of {os.cpu_count()} cores"


def _settings(case: Case) -> str:
    if case.is_network:
        return f"{case.dtype}, batch {case.batch_size}, width {case.channels}"
    features = f"C = {case.channels}, standard deviation {case.std:g}"
    return f"{case.dtype}, batch {case.batch_size}, {features}"


def _print_progress(
    count: str, case: Case, results: Sequence[Mapping[str, Any]], clock: str
) -> None:
    def outcome(result):
        return result.get("note") or f"{1e3 * statistics.median(result[clock]):.4g} ms"

    size = "x".join(map(str, case.size)) if case.is_network else f"N={case.positions}"
    line = ", ".join(f"{result['form']} {outcome(result)}" for result in results)
    print(f"[{count}] {case.name} {size} {case.mode}: {line}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    kinds = ("ops", "models")
    if len(arguments) != 2 or arguments[1] not in kinds:
        raise InputError(f"give one of {', '.join(kinds)}")
    kind = arguments[1]
    _prepare_process()
    on_cpu = jax.default_backend() == "cpu"
    cases = _cases(kind, _DTYPE.value or ("float32" if on_cpu else "bfloat16"))
    torch_version = _torch_version()
    forms = _forms(cases, torch_version is not None)
    cases = [case for case in cases if forms[case]]
    if not cases:
        raise InputError("nothing to measure: no case is named, or none has one of --forms")
    directory = make_directory(_OUTPUT.value)

    versions = {"jax": jax.__version__, "flax": flax.__version__, "torch": torch_version}
    summary = {
        "kind": kind,
        "command": shlex.join(["python", "-m", "experiments.benchmark", *sys.argv[1:]]),
        "device": _device(),
        "settings": _settings(cases[0]),
        "versions": {name: version for name, version in versions.items() if version},
        "baseline": (_FORMS.value or ["ours"])[0],
        # Of one thread, its own time: what else runs on the machine does not count.
        "clock": "cpu_seconds" if on_cpu and cores() == 1 else "wall_seconds",
        "results": [],
    }
    for i, case in enumerate(cases, 1):
        results = runner.run(case, forms[case], repeats=_REPEATS.value, memory=_MEMORY.value)
        _print_progress(f"{i}/{len(cases)}", case, results, summary["clock"])
        summary["results"] += [{**case.describe(), **result} for result in results]
        write_json(directory / f"{kind}.json", summary)
        write_file(directory / f"{kind}.md", report.table(summary) + "\n")
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no plot", file=sys.stderr)
    else:
        with replacing(directory / f"{kind}.png") as partial:
            report.plot(summary, partial)
    print(report.table(summary))


if __name__ == "__main__":
    cli.run(main, positional=True)
