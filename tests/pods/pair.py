"""Starts one command in several processes of this machine, as a launcher does on several hosts."""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from tests.helpers import child_environment, free_port

HEARTBEAT = 10
# The demo with feature maps of 4x4 pixels.
CONFIG = (
    "--config=configs/segmentation.py:demo_nonlocal",
    "--config.model.width=4",
    "--config.model.head_channels=8",
    "--config.model.auxiliary_channels=8",
    "--config.data.batch_size=4",
    "--config.data.base_size=(16,16)",
    "--config.data.crop=(16,16)",
    # Slow enough that rounding does not part runs on other numbers of devices.
    "--config.optimizer.learning_rate=0.01",
    "--config.steps=12",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=4",
    "--config.train.evaluate_every=6",
)


def jax_variables(number: int) -> list[dict[str, str]]:
    """The environments of processes that no launcher starts."""
    address = f"localhost:{free_port()}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(number)}
    return [{**common, "JAX_PROCESS_ID": str(index)} for index in range(number)]


def slurm_variables(number: int) -> list[dict[str, str]]:
    """The environments of the processes of ``srun``."""
    common = {
        "SLURM_JOB_ID": str(free_port()),  # JAX derives a port from it
        "SLURM_NTASKS": str(number),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": str(number),
        "SLURM_STEP_NUM_NODES": "1",
    }
    return [
        {**common, "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}
        for index in range(number)
    ]


class Processes:
    """A command in several processes.

    Args:
      directory: Where the processes write, and with ``--workdir=run``, the run.
      command: The name of the command.
      flags: Further flags of the command.
      faults: The faults of each process, see ``member``. Default: two processes without faults.
      own_flags: Flags of only one process each.
      environments: Environments of the processes. Default: those of ``jax_variables``.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        command: str = "train",
        flags: Sequence[str] = ("--workdir=run",),
        *,
        faults: Sequence[Mapping] = ({}, {}),
        own_flags: Sequence[Sequence[str]] = ((), ()),
        environments: Sequence[Mapping[str, str]] | None = None,
    ):
        if environments is None:
            environments = jax_variables(len(faults))
        number = len(list(directory.glob("start_*")))
        logs = directory / f"start_{number}"
        logs.mkdir(parents=True)
        cache = str(directory.parent / "compilation_cache")
        self._paths = [(logs / f"{i}.out", logs / f"{i}.err") for i in range(len(faults))]
        self.started = time.time()
        self.processes = []
        module = [sys.executable, "-m", "tests.pods.member"]
        common = [*CONFIG, f"--heartbeat-timeout={HEARTBEAT}", *flags]
        for i, (out, err) in enumerate(self._paths):
            if len(faults) == 1:
                common = [*common, "--distributed=off"]
            environment = child_environment(
                JAX_PLATFORMS="cpu",
                # Compiles in half of the time.
                JAX_DISABLE_MOST_OPTIMIZATIONS="1",
                JAX_COMPILATION_CACHE_DIR=cache,
                JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
                JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
                PYTHONPATH=os.pathsep.join([str(pathlib.Path.cwd()), *sys.path]),
                **environments[i],
            )
            with out.open("w") as stdout, err.open("w") as stderr:
                arguments = [json.dumps(faults[i]), command, *common, *own_flags[i]]
                self.processes.append(
                    subprocess.Popen(
                        [*module, *arguments],
                        cwd=directory,
                        stdout=stdout,
                        stderr=stderr,
                        env=environment,
                    )
                )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def out(self, index: int) -> str:
        return self._paths[index][0].read_text()

    def err(self, index: int) -> str:
        return self._paths[index][1].read_text()

    def wait_for(self, text: str, index: int = 0, seconds: float = 300) -> None:
        """Waits until a process has printed a text."""
        deadline = time.monotonic() + seconds
        while text not in self.out(index) + self.err(index):
            assert self.processes[index].poll() is None, self.log()
            assert time.monotonic() < deadline, f"no {text!r}:\n{self.log()}"
            time.sleep(0.01)

    def ends(self, seconds: float = 300) -> list[tuple[int, float]]:
        """Waits for all processes. Returns their exit statuses, and when they ended."""
        deadline = time.monotonic() + seconds
        ends = [None] * len(self.processes)
        while None in ends:
            assert time.monotonic() < deadline, f"does not end:\n{self.log()}"
            for i, process in enumerate(self.processes):
                if ends[i] is None and process.poll() is not None:
                    ends[i] = (process.returncode, time.time())
            time.sleep(0.01)
        return ends

    def succeed(self) -> "Processes":
        """Waits for all processes, which must exit with status 0."""
        assert all(status == 0 for status, _ in self.ends()), self.log()
        return self

    def log(self) -> str:
        """What all processes have printed."""
        return "\n".join(f"-- {path}\n{path.read_text()}" for pair in self._paths for path in pair)
