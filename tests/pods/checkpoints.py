"""What happens to checkpoints: full disks, damage, and work directories in buckets."""

import contextlib
import functools
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import numpy as np
from etils import epath

from nonlocal_jax import convert, data
from tests.data import archives
from tests.helpers import child_environment, free_port
from tests.pods import emulator
from tests.pods.pair import HEARTBEAT, Processes, jax_variables
from tests.pods.processes import check_refused

_SLOW = {"seconds_per_example": 0.1}
# Bytes of a full disk that are free: more than lines of the log, less than a state.
_LEFT = 100_000


def _variables(run: epath.Path | pathlib.Path) -> dict:
    return convert.load(run, json.loads((run / "config.json").read_text())["model"])


def _assert_equal(a: dict, b: dict) -> None:
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


def _load_steps(run: pathlib.Path) -> list[int]:
    """Loads every saved step."""
    steps = sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdecimal())
    model = json.loads((run / "config.json").read_text())["model"]
    for step in steps:
        convert.load(run / "checkpoints" / str(step), model)
    return steps


def _environments(number: int) -> dict:
    """The option of ``Processes`` for a run of one process, or of two."""
    return {"environments": [{}]} if number == 1 else {}


def _fails(processes: Processes, message: str) -> float:
    """Waits for process 0 to exit with status 2. Returns its seconds since step 8."""
    processes.wait_for("step 8/")
    begin = time.time()
    (status, end), *others = processes.ends()
    assert status == 2, processes.log()
    assert processes.err(0).count("error: ") == 1, processes.log()
    assert re.search(message, processes.err(0)), processes.log()
    assert "Traceback" not in processes.err(0), processes.log()
    assert end - begin < 10, processes.log()
    for status, other in others:
        assert status != 0, processes.log()
        assert other - end < 2 * HEARTBEAT, processes.log()
    return end - begin


def _resumes(directory: pathlib.Path, number: int, step: int) -> None:
    """Goes on from a step to the last one."""
    with Processes(directory, faults=[{}] * number, **_environments(number)) as again:
        again.succeed()
        assert f"from step {step} of 12" in again.out(0), again.log()


def full_disk(directory: pathlib.Path, *, number: int) -> str:
    """The disk is full when step 8 is saved, in the background. Only root can mount one."""
    run = directory / "run"
    run.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", run], check=True)
    try:
        with Processes(directory, faults=[_SLOW] * number, **_environments(number)) as processes:
            processes.wait_for("saved step 4")
            rest = os.statvfs(run).f_bavail * os.statvfs(run).f_frsize - _LEFT
            (run / "other").write_bytes(bytes(rest))
            message = "cannot save a checkpoint to .*: No space left on device; the "
            seconds = _fails(processes, message)
        steps = _load_steps(run)
        (run / "other").unlink()
        _resumes(directory, number, 4)
    finally:
        subprocess.run(["umount", "--lazy", run], check=True)
    return f"exits 2 after {seconds:.1f} s with one message; saved steps {steps} load"


def no_directory(directory: pathlib.Path, *, number: int) -> str:
    """The directory of a save cannot be made."""
    checkpoints, aside = directory / "run" / "checkpoints", directory / "aside"
    with Processes(directory, faults=[_SLOW] * number, **_environments(number)) as processes:
        processes.wait_for("saved step 4")
        checkpoints.rename(aside)
        checkpoints.touch()
        seconds = _fails(processes, "cannot save a checkpoint to .*: Not a directory; the ")
    checkpoints.unlink()
    aside.rename(checkpoints)
    steps = _load_steps(directory / "run")
    _resumes(directory, number, 4)
    return f"exits 2 after {seconds:.1f} s with one message; saved steps {steps} load"


def truncated(directory: pathlib.Path, *, number: int) -> str:
    """A file of the newest checkpoint is cut in half."""
    with Processes(directory, faults=[_SLOW] * number, **_environments(number)) as processes:
        processes.succeed()
    file = max((directory / "run/checkpoints/12/variables/d").iterdir())
    os.truncate(file, file.stat().st_size // 2)
    with Processes(directory, faults=[{}] * number, **_environments(number)) as processes:
        processes.wait_for("from step 8 of 12")
        seconds = time.time() - processes.started
        processes.succeed()
        assert processes.err(0).count("is damaged") == 1, processes.log()
        for index in range(1, number):
            assert "is damaged" not in processes.err(index), processes.log()
    steps = _load_steps(directory / "run")
    assert steps == [4, 8, 12]
    return f"a warning, and goes on from the step before {seconds:.1f} s after its start"


@contextlib.contextmanager
def _bucket(directory: pathlib.Path) -> Iterator[dict[str, str]]:
    """Starts a bucket. Yields the environment of those who use it, and lets this process use it."""
    port = free_port()
    environment = emulator.environment(port)
    module = [sys.executable, "-m", "tests.pods.emulator", directory / "objects", str(port)]
    with (
        mock.patch.dict(os.environ, environment),
        (directory / "emulator.log").open("w") as log,
        subprocess.Popen(module, stdout=log, stderr=log, env=child_environment()) as server,
    ):
        try:
            deadline = time.monotonic() + 60
            while True:
                assert server.poll() is None, (directory / "emulator.log").read_text()
                with contextlib.suppress(OSError), socket.create_connection(("localhost", port)):
                    break
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield environment
        finally:
            server.kill()


def _upload(directory: pathlib.Path, target: epath.Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            (target / path.relative_to(directory)).write_bytes(path.read_bytes())


def bucket(directory: pathlib.Path) -> str:
    """Work directory, data and compilation cache in a bucket: refused, killed and restarted."""
    prepared = directory / "data"
    source = archives.folder(directory / "source", {"train": 12, "val": 4})
    data.prepare_dataset("folder", source, prepared, name="leaves")
    classes = len(data.get_dataset("leaves", prepared).classes)
    with _bucket(directory) as environment:
        _upload(prepared, epath.Path("gs://bucket/data"))
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": "gs://bucket/cache",
            "NONLOCAL_JAX_DATA": str(directory / "host"),
        }

        def start(workdir: str, faults: dict) -> Processes:
            flags = (
                f"--workdir={workdir}",
                "--data-dir=gs://bucket/data",
                "--config.data.name=leaves",
                f"--config.model.num_classes={classes}",
            )
            faults = {"data_of_config": True, **faults}
            environments = [{**environment, **own} for own in jax_variables(2)]
            return Processes(directory, flags=flags, faults=[faults] * 2, environments=environments)

        with start("undisturbed", {}) as pair:
            pair.succeed()
        slow = {"seconds_per_image": 30, "images": str(directory / "images")}
        for process in range(2):
            with start("gs://bucket/run", slow) as pair:
                if process == 0:
                    pair.wait_for("saved step 4")
                pair.wait_for("compiling the network")  # the evaluation at step 6
                if process == 0:
                    locks = directory / "locks"
                    with start("gs://bucket/run", {"locks": str(locks)}) as second:
                        refused = check_refused(second, pair, "gs://bucket/run", locks)
                pair.processes[process].kill()
                status, _ = pair.ends()[1 - process]
                assert status != 0, pair.log()
        with start("gs://bucket/run", {}) as pair:
            pair.succeed()
            step = re.search(r"from step (\d+) of 12", pair.out(0))
            assert step, pair.log()
            assert "has not renewed its lease" not in pair.out(0), pair.log()
        run = epath.Path("gs://bucket/run")
        _assert_equal(_variables(run), _variables(directory / "undisturbed"))
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [record["step"] for record in records if "train/loss" in record]
        assert steps == list(range(1, 13))
        assert not (run / ".lock").exists()
        assert list(epath.Path("gs://bucket/cache").iterdir())
    local = [*directory.rglob("gs:*"), *pathlib.Path.cwd().glob("gs:*")]
    assert not local, local
    return (
        f"a second pair is refused {refused}, with host and process; after SIGKILL of process 0, "
        f"and then of process 1, the restarted pair goes on at once from step {step[1]} and ends "
        "bit for bit as undisturbed; no local directory gs:"
    )


SCENARIOS: dict[str, Callable[[pathlib.Path], str]] = {
    f"{name}, {number} {'processes' if number > 1 else 'process'}": functools.partial(
        function, number=number
    )
    for name, function in (
        ("a disk that fills in a save", full_disk),
        ("a save whose directory cannot be made", no_directory),
        ("a truncated newest checkpoint", truncated),
    )
    for number in (1, 2)
} | {"work directory, data and compilation cache in a bucket": bucket}
