"""The launchers with real training processes."""

import contextlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np

from nonlocal_jax import convert
from tests.helpers import child_environment, read_metrics
from tests.pods.pair import CONFIG, HEARTBEAT

_ROOT = pathlib.Path(__file__).parents[2]
_NAME = "demo_nonlocal"
_STEPS = 12
_TIMEOUT = 600


def slurm(directory: pathlib.Path) -> str:
    """slurm.sbatch, two processes: each is killed once, and the script starts them again."""
    with _job(directory, "undisturbed") as job:
        _succeed(job, directory / "undisturbed.log")
    with _job(directory, "disturbed") as job:
        for step, rank in ((4, 1), (8, 0)):
            _wait_for_save(directory / "disturbed" / _NAME, step, job)
            os.kill(int((directory / "tasks" / str(rank)).read_text()), signal.SIGKILL)
        lines = _succeed(job, directory / "disturbed.log")
    restarts = lines.count("restart: ")
    assert restarts == 2, lines
    _check_equal(directory)
    table = subprocess.run(
        [sys.executable, "-m", "experiments.table", "undisturbed", "disturbed"],
        cwd=directory,
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f" ± 0.00 | - | - | 2 (0, 0) | {_STEPS} |" in table, table
    return f"{restarts} restarts, then bit for bit the undisturbed run"


@contextlib.contextmanager
def _job(directory: pathlib.Path, runs: str) -> Iterator[subprocess.Popen]:
    """Runs slurm.sbatch as ``sbatch`` does, for two tasks on one node."""
    commands, tasks = directory / "bin", directory / "tasks"
    commands.mkdir(parents=True, exist_ok=True)
    tasks.mkdir(exist_ok=True)
    python = shlex.quote(sys.executable)
    for name, line in {
        "srun": f'exec {python} {_ROOT / "tests/pods/srun.py"} "$@"',
        # The training is the real one, with small data.
        "python": f"""
if [ "$2" != experiments.train ]; then exec {python} "$@"; fi
shift 2
exec {python} -m tests.pods.member '{{"seconds_per_example": 0.05}}' train "$@"
""",
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    environment = child_environment(
        PATH=f"{commands}:{os.environ['PATH']}",
        TASKS=str(tasks),
        JAX_PLATFORMS="cpu",
        JAX_COMPILATION_CACHE_DIR=str(directory.parent / "compilation_cache"),
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # compiles in half of the time
        SLURM_JOB_ID=str(os.getpid()),  # JAX derives the port from it
        SLURM_ARRAY_TASK_ID="0",
        SLURM_NTASKS="2",
        SLURM_CPUS_PER_TASK="1",
    )
    script = ["bash", "experiments/launch/slurm.sbatch", _NAME, str(directory / runs)]
    with (directory / f"{runs}.log").open("w") as log:
        process = subprocess.Popen(
            [*script, *CONFIG[1:], f"--heartbeat-timeout={HEARTBEAT}"],
            cwd=_ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _succeed(job: subprocess.Popen, log: pathlib.Path) -> str:
    """Waits for the job, which must exit with status 0. Returns its log."""
    assert job.wait(_TIMEOUT) == 0, log.read_text()
    return log.read_text()


def _wait_for_save(workdir: pathlib.Path, step: int, job: subprocess.Popen) -> None:
    """Waits until a step is saved, or a later one."""
    end = time.monotonic() + _TIMEOUT
    while time.monotonic() < end:
        saved = [int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()]
        if max(saved, default=0) >= step:
            return
        assert job.poll() is None, f"the job ended with status {job.returncode}"
        time.sleep(0.02)
    raise AssertionError(f"no step {step} in {workdir}")


def _check_equal(directory: pathlib.Path) -> None:
    runs = [directory / name / _NAME for name in ("undisturbed", "disturbed")]
    config = json.loads((runs[0] / "config.json").read_text())
    jax.tree.map(
        np.testing.assert_array_equal, *(convert.load(run, config["model"]) for run in runs)
    )
    keys = ("step", "train/loss", "train/grad_norm", "val/miou")
    logs = [[{k: r.get(k) for k in keys} for r in read_metrics(run)] for run in runs]
    assert logs[0] == logs[1]


SCENARIOS = {"SIGKILL of each process, under slurm.sbatch": slurm}
