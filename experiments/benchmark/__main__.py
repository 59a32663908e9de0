"""Compares the time and the memory of this project with those of PyTorch.

    python -m experiments.benchmark ops    --output=DIR --positions=4096,9409 --threads=1
    python -m experiments.benchmark models --output=DIR --networks=r50_nonlocal --sizes=512x1024
    python -m experiments.benchmark models --output=DIR --networks=r50_nl_i3d --sizes=32x224x224

The benchmark runs on the first CPU, GPU or TPU device of JAX. Each case is measured in several
variants:

    ours                 The implementation that implementation="auto" selects.
    ours_IMPLEMENTATION  One of our implementations, such as ours_dense.
    torch_eager          PyTorch, with autocast in bfloat16.
    torch_compile        PyTorch, compiled and channels-last. On a GPU with max-autotune.
    torch_sdpa           Like torch_compile, with scaled_dot_product_attention.
    torch_reassociated   Like torch_compile, with the dot product reassociated.

The variants are measured in turns, so that a disturbance of the machine affects all of them. The
memory of each variant is measured in a fresh process. Without torch, only our variants are
measured.

The benchmark writes DIR/ops.json with every sample, DIR/ops.md and, if Matplotlib is installed,
DIR/ops.png. For models it writes DIR/models.json and so on. The first two files are updated after
every case.
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
from experiments.benchmark import _report, _runner
from experiments.benchmark._cases import (
    BLOCKS,
    DTYPES,
    NETWORKS,
    OPERATIONS,
    VIDEO_NETWORKS,
    Case,
    feature_map,
)
from experiments.benchmark._measure import cores
from nonlocal_jax._files import make_directory, replacing, write_file, write_json
from nonlocal_jax.errors import InputError

_OUTPUT = flags.DEFINE_string("output", None, "Directory for the results.", required=True)
_OPERATIONS = flags.DEFINE_list(
    "operations", [*OPERATIONS, *BLOCKS], "For ops: operations and blocks to measure."
)
_POSITIONS = flags.DEFINE_list(
    "positions", ["4096", "8192", "9409"], "For ops: numbers of positions."
)
_CHANNELS = flags.DEFINE_integer(
    "channels", 256, "For ops: channels of theta, phi and g. Blocks have twice as many.", 1
)
_STD = flags.DEFINE_float(
    "std",
    Case.std,
    "For ops: standard deviation of the features. A larger one sharpens the softmax.",
    0,
)
_NETWORKS = flags.DEFINE_list(
    "networks", [*NETWORKS, *VIDEO_NETWORKS], "For models: networks to measure."
)
_SIZES = flags.DEFINE_list(
    "sizes",
    ["512x512", "512x1024", "769x769", "32x224x224", "128x224x224"],
    "For models: sizes of the images, HEIGHTxWIDTH, and of the clips, FRAMESxHEIGHTxWIDTH.",
)
_WIDTH = flags.DEFINE_integer("width", 64, "For models: channels of the first stage.", 8)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Batch size. Default: 1 for ops, 2 for models.", 1
)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, DTYPES, "Type of the computation. Default: float32 on a CPU, else bfloat16."
)
_VARIANTS = flags.DEFINE_list(
    "variants",
    [],
    "Variants to compare, the baseline first. Default: ours, ours_dense and all of PyTorch's.",
)
_GRADIENT = flags.DEFINE_enum(
    "gradient",
    "both",
    ["both", "with", "without"],
    "Whether to measure with gradient (train steps), without (inference), or both.",
)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Number of samples of each variant.", 1)
_THREADS = flags.DEFINE_integer(
    "threads",
    None,
    "Number of CPU cores to use. With one core, CPU time is measured. Default: all.",
    1,
)
_MEMORY = flags.DEFINE_boolean("memory", True, "Whether to measure memory.")


def _choices(flag: flags.FlagHolder, known: Sequence[str]) -> list[str]:
    for name in flag.value:
        if name not in known:
            raise InputError(f"unknown --{flag.name}={name}; use one or more of {','.join(known)}")
    return list(dict.fromkeys(flag.value))


def _sizes() -> list[tuple[int, ...]]:
    for size in _SIZES.value:
        if not re.fullmatch(r"([1-9]\d*x){1,2}[1-9]\d*", size):
            raise InputError(
                f"--sizes={size} is not HEIGHTxWIDTH or FRAMESxHEIGHTxWIDTH; use, for example, "
                "512x1024 or 32x224x224"
            )
    return [tuple(map(int, size.split("x"))) for size in dict.fromkeys(_SIZES.value)]


def _positions() -> list[int]:
    for positions in _POSITIONS.value:
        if not re.fullmatch(r"[1-9]\d*", positions):
            raise InputError(
                f"--positions={positions} is not a positive integer; use, for example, 4096"
            )
    return list(dict.fromkeys(map(int, _POSITIONS.value)))


def _prepare_process() -> None:
    """Limits cores and memory before JAX starts its threads and preallocates GPU memory."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if _THREADS.value:
        if sys.platform != "linux":
            raise InputError("--threads works only on Linux; leave it out")
        if _THREADS.value > cores():
            raise InputError(
                f"--threads={_THREADS.value} exceeds the {cores()} available cores; "
                f"use at most {cores()}"
            )
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-_THREADS.value :])


def _cases(kind: str, dtype: str) -> list[Case]:
    if kind == "ops":
        names = _choices(_OPERATIONS, [*OPERATIONS, *BLOCKS])
        sizes = [feature_map(n) for n in _positions()]
        batch_size, channels = _BATCH_SIZE.value or 1, _CHANNELS.value
    else:
        names, sizes = _choices(_NETWORKS, [*NETWORKS, *VIDEO_NETWORKS]), _sizes()
        batch_size, channels = _BATCH_SIZE.value or 2, _WIDTH.value
    gradients = {"both": (False, True), "with": (True,), "without": (False,)}[_GRADIENT.value]
    return [
        Case(name, size, batch_size, channels, dtype, backward, _STD.value)
        for name in names
        for size in sizes
        if len(size) == (3 if name in VIDEO_NETWORKS else 2)
        for backward in gradients
    ]


def _variants(cases: Sequence[Case], torch: bool) -> dict[Case, list[str]]:
    """Returns the variants of each case. The default excludes our other implementations."""
    known = dict.fromkeys(variant for case in cases for variant in case.variants())
    default = [v for v in known if v == "ours_dense" or not v.startswith("ours_")]
    wanted = _choices(_VARIANTS, list(known)) or default
    if not torch:
        if asked := [variant for variant in _VARIANTS.value if variant.startswith("torch_")]:
            raise InputError(
                f"--variants={','.join(asked)} needs PyTorch on this device; leave it out, or "
                "install torch"
            )
        wanted = [variant for variant in wanted if not variant.startswith("torch_")]
    return {case: [v for v in wanted if v in case.variants()] for case in cases}


def _torch_version() -> str | None:
    """Returns the version of PyTorch, or None if it cannot run on the device of JAX."""
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed; its variants are left out", file=sys.stderr)
        return None
    import torch

    backend = jax.default_backend()
    if backend == "cpu" or (backend == "gpu" and torch.cuda.is_available()):
        return torch.__version__
    print(f"PyTorch does not run on this {backend}; its variants are left out", file=sys.stderr)
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
    line = ", ".join(f"{result['variant']} {outcome(result)}" for result in results)
    print(f"[{count}] {case.name} {size} {case.mode}: {line}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    kinds = ("ops", "models")
    if len(arguments) != 2 or arguments[1] not in kinds:
        raise InputError(f"cannot measure {' '.join(arguments[1:])!r}; use {' or '.join(kinds)}")
    kind = arguments[1]
    _prepare_process()
    on_cpu = jax.default_backend() == "cpu"
    cases = _cases(kind, _DTYPE.value or ("float32" if on_cpu else "bfloat16"))
    torch_version = _torch_version()
    variants = _variants(cases, torch_version is not None)
    cases = [case for case in cases if variants[case]]
    if not cases:
        raise InputError(
            f"no operation or network matches --operations={','.join(_OPERATIONS.value)}, "
            f"--networks={','.join(_NETWORKS.value)}, --sizes={','.join(_SIZES.value)} and "
            f"--variants={','.join(_VARIANTS.value)}; leave out one or more of these flags"
        )
    directory = make_directory(_OUTPUT.value)

    versions = {"jax": jax.__version__, "flax": flax.__version__, "torch": torch_version}
    summary = {
        "kind": kind,
        "command": shlex.join(["python", "-m", "experiments.benchmark", *sys.argv[1:]]),
        "device": _device(),
        "settings": _settings(cases[0]),
        "versions": {name: version for name, version in versions.items() if version},
        "baseline": (_VARIANTS.value or ["ours"])[0],
        # With one thread, CPU time: it does not depend on what else runs on the machine.
        "clock": "cpu_seconds" if on_cpu and cores() == 1 else "wall_seconds",
        "results": [],
    }
    for i, case in enumerate(cases, 1):
        results = _runner.run(case, variants[case], repeats=_REPEATS.value, memory=_MEMORY.value)
        _print_progress(f"{i}/{len(cases)}", case, results, summary["clock"])
        summary["results"] += [{**case.describe(), **result} for result in results]
        write_json(directory / f"{kind}.json", summary)
        write_file(directory / f"{kind}.md", _report.table(summary) + "\n")
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed; no plot is written", file=sys.stderr)
    else:
        with replacing(directory / f"{kind}.png") as partial:
            _report.plot(summary, partial)
    print(_report.table(summary))


if __name__ == "__main__":
    cli.run(main, positional=True)
