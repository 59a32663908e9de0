"""The launchers with real training processes."""

import contextlib
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

import nonlocal_jax as nlj
from configs import segmentation
from tests.helpers import child_environment, read_metrics

_ROOT = pathlib.Path(__file__).parents[2]
_NAME = "demo_fcn"
_FLAGS = (
    "--config.model.width=8",
    "--config.data.batch_size=8",
    "--config.steps=60",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=5",
    "--config.train.evaluate_every=60",
    "--heartbeat-timeout=10",
)
_TIMEOUT = 600


def slurm(directory: pathlib.Path) -> str:
    """slurm.sbatch, two processes: each is killed once, and the script starts them again."""
    with _job(directory, "undisturbed", 0) as job:
        _, lines = job.communicate(timeout=_TIMEOUT)
        assert job.returncode == 0, lines
    with _job(directory, "disturbed", 1) as job:
        for step, rank in ((5, 1), (20, 0)):
            _wait_for_save(directory / "disturbed" / _NAME, step, job)
            os.kill(int((directory / "tasks" / str(rank)).read_text()), signal.SIGKILL)
        _, lines = job.communicate(timeout=_TIMEOUT)
        assert job.returncode == 0, lines
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
    assert " ± 0.00 | - | - | 2 (0, 0) | 60 |" in table, table
    return f"{restarts} restarts, then bit for bit the undisturbed run"


@contextlib.contextmanager
def _job(directory: pathlib.Path, runs: str, job: int) -> Iterator[subprocess.Popen]:
    """Runs slurm.sbatch as ``sbatch`` does, for two tasks on one node."""
    commands, tasks = directory / "bin", directory / "tasks"
    commands.mkdir(parents=True, exist_ok=True)
    tasks.mkdir(exist_ok=True)
    python = shlex.quote(sys.executable)
    for name, line in {
        "srun": f'exec {python} {_ROOT / "tests/pods/srun.py"} "$@"',
        "python": f'exec {python} "$@"',
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    environment = child_environment(
        PATH=f"{commands}:{os.environ['PATH']}",
        TASKS=str(tasks),
        JAX_PLATFORMS="cpu",
        JAX_COMPILATION_CACHE_DIR=str(directory / "cache"),
        SLURM_JOB_ID=str(4096 * job + os.getpid()),  # JAX derives the port from it
        SLURM_ARRAY_TASK_ID="0",
        SLURM_NTASKS="2",
        SLURM_CPUS_PER_TASK="1",
    )
    script = "experiments/launch/slurm.sbatch"
    process = subprocess.Popen(
        ["bash", script, _NAME, str(directory / runs), *_FLAGS],
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for_save(workdir: pathlib.Path, step: int, job: subprocess.Popen) -> None:
    """Waits until a step is saved, or a later one."""
    end = time.monotonic() + _TIMEOUT
    while time.monotonic() < end:
        saved = [int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()]
        if max(saved, default=0) >= step:
            return
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.02)
    raise AssertionError(f"no step {step} in {workdir}")


def _check_equal(directory: pathlib.Path) -> None:
    config = segmentation.get_config(_NAME)
    config.model.width = 8
    runs = [directory / name / _NAME for name in ("undisturbed", "disturbed")]
    jax.tree.map(np.testing.assert_array_equal, *(nlj.convert.load(r, config.model) for r in runs))
    keys = ("step", "train/loss", "train/grad_norm", "val/miou")
    logs = [[{k: r.get(k) for k in keys} for r in read_metrics(run)] for run in runs]
    assert logs[0] == logs[1]
