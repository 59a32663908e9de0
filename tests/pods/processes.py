"""What happens if a process is lost, stopped, or differs from the others."""

import functools
import json
import pathlib
import re
import signal
import socket
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from nonlocal_jax import convert
from tests.pods.pair import HEARTBEAT, Processes, slurm_variables

_STEPS = 12
SLOW_STEPS = {"seconds_per_example": 0.1}


def _variables(directory: pathlib.Path) -> dict:
    return convert.load(directory, json.loads((directory / "config.json").read_text())["model"])


@functools.cache
def _undisturbed() -> dict:
    """The variables after a run of two processes in which nothing happens."""
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        with Processes(directory / "undisturbed") as pair:
            pair.succeed()
        return _variables(directory / "undisturbed" / "run")


def _finish(directory: pathlib.Path) -> str:
    """Starts the pair again. Every saved step must load, and the end must be that of no fault."""
    run = directory / "run"
    steps = sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdecimal())
    model = json.loads((run / "config.json").read_text())["model"]
    for step in steps:
        convert.load(run / "checkpoints" / str(step), model)
    with Processes(directory) as pair:
        pair.succeed()
        if steps:
            assert f"from step {steps[-1]} of {_STEPS}" in pair.out(0), pair.log()
    for a, b in zip(*map(jax.tree.leaves, (_variables(run), _undisturbed())), strict=True):
        np.testing.assert_array_equal(a, b)
    return f"saved steps {steps} load, the restarted pair ends bit for bit as undisturbed"


def _in_steps(pair: Processes, directory: pathlib.Path) -> None:
    pair.wait_for("step 5/")


def _in_a_save(pair: Processes, directory: pathlib.Path) -> None:
    pair.wait_for("step 8/")
    deadline = time.monotonic() + 60
    while not any((directory / "run" / "checkpoints").glob("8.*tmp*")):
        assert time.monotonic() < deadline, pair.log()
        time.sleep(0.001)


def wait_for_images(pair: Processes, directory: pathlib.Path) -> None:
    """Waits until both processes evaluate."""
    deadline = time.monotonic() + 120
    while sum((directory / f"images_{i}").exists() for i in range(2)) < 2:
        assert time.monotonic() < deadline, pair.log()
        time.sleep(0.01)


_MOMENTS = {
    "steps": (_in_steps, SLOW_STEPS),
    "a save": (_in_a_save, {"seconds_per_save": 2}),
    "an evaluation": (wait_for_images, {"seconds_per_image": 1}),
}


def killed(directory: pathlib.Path, *, process: int, moment: str) -> str:
    """SIGKILL of one process. The other ends, and the restarted pair goes on."""
    wait, faults = _MOMENTS[moment]
    with Processes(directory, faults=both(directory, faults)) as pair:
        wait(pair, directory)
        pair.processes[process].kill()
        begin = time.time()
        status, end = pair.ends()[1 - process]
        assert status != 0, pair.log()
        assert end - begin < 2 * HEARTBEAT, pair.log()
    return f"the other ends after {end - begin:.1f} s with status {status}; {_finish(directory)}"


def both(directory: pathlib.Path, faults: dict) -> list[dict]:
    """The faults of two processes that write when they evaluate images."""
    return [{**faults, "images": str(directory / f"images_{i}")} for i in range(2)]


def late_images(directory: pathlib.Path, signalled: float) -> int:
    """The number of images whose evaluation began although a signal had come."""
    times = [(directory / f"images_{i}").read_text().split() for i in range(2)]
    # JAX looks for the signal once a second.
    return sum(float(begin) > signalled + 1.5 for begin in times[0] + times[1])


def stopped(directory: pathlib.Path, *, process: int, moment: str, number: signal.Signals) -> str:
    """A signal to one process. Both save, and exit with status 0."""
    wait, faults = _MOMENTS[moment]
    if moment == "an evaluation":
        faults = {"seconds_per_image": 3}
    with Processes(directory, faults=both(directory, faults)) as pair:
        wait(pair, directory)
        pair.processes[process].send_signal(number)
        begin = time.time()
        ends = pair.ends()
        expected = [128 + number if number == signal.SIGINT and i == process else 0 for i in (0, 1)]
        assert [status for status, _ in ends] == expected, pair.log()
        # Only the process that gets a signal knows which.
        name = number.name if process == 0 else "SIGTERM"
        message = rf"{name}: saved step (\d+); run the same command to resume\n"
        step = re.search(message, pair.out(0))
        assert step, pair.log()
        assert not lines(pair.out(1)), pair.log()
    seconds = max(end for _, end in ends) - begin
    images = ""
    if moment == "an evaluation":
        late = late_images(directory, begin)
        assert late == 0, f"{late} images began after the signal:\n{pair.log()}"
        images = ", no further image began"
    finish = _finish(directory)
    return f"saved step {step[1]} after {seconds:.1f} s{images}; {finish}"


def unreadable(directory: pathlib.Path, *, process: int) -> str:
    """An example that one process cannot read."""
    marker = directory / "read"
    faults = [{}, {}]
    # The first step, which compiles, is over by then.
    faults[process] = {"unreadable": 16, "marker": str(marker)}
    with Processes(directory, faults=faults) as pair:
        ends = pair.ends()
        assert ends[process][0] == 2, pair.log()
        message = r"(?m)^error: street_\d+.png is damaged; replace the file$"
        assert re.search(message, pair.err(process)), pair.log()
        assert "Traceback" not in pair.err(process)
        own, other = ends[process][1] - marker.stat().st_mtime, ends[1 - process]
        assert own < 10, pair.log()
        assert other[0] != 0, pair.log()
        seconds = other[1] - ends[process][1]
        assert seconds < 2 * HEARTBEAT, pair.log()
    return (
        f"exits 2 after {own:.1f} s and names the example, the other ends {seconds:.1f} s later "
        f"with status {other[0]}; {_finish(directory)}"
    )


_DIFFERENCES = {
    "seed": ({"own_flags": ((), ("--config.seed=1",))}, "config.seed: 0 in process 0, 1 in 1"),
    "data": ({"faults": ({}, {"data": 1})}, "data: "),
    "workdir": ({"own_flags": ((), ("--workdir=other",))}, "different work directories: "),
}


def different(directory: pathlib.Path, *, fact: str) -> str:
    """Processes that differ are refused, in both of them, before the first step."""
    options, message = _DIFFERENCES[fact]
    with Processes(directory, **options) as pair:
        ends = pair.ends()
        assert [status for status, _ in ends] == [2, 2], pair.log()
        for index in range(2):
            assert pair.err(index).count("error: ") == 1, pair.log()
            assert message in pair.err(index), pair.log()
            assert "step" not in pair.out(index), pair.log()
    return (
        f"both exit 2 after {max(end for _, end in ends) - pair.started:.1f} s and name the {fact}"
    )


def check_refused(second: Processes, first: Processes, workdir: str, locks: pathlib.Path) -> str:
    """A second pair ends with a message that names the first one. Returns how soon.

    The time of ``locks`` is that of its attempt to lock the work directory. How long it needs to
    start Python and to connect before that depends on the machine.
    """
    ends = second.ends()
    assert [status for status, _ in ends] == [2, 2], second.log()
    holder = f"(process {first.processes[0].pid} on {socket.gethostname()}, since"
    for index in range(2):
        assert f"another run uses {workdir} {holder}" in second.err(index), second.log()
    end = max(end for _, end in ends)
    seconds = end - locks.stat().st_mtime
    assert seconds < 5, second.log()
    return f"{end - second.started:.1f} s after its start, {seconds:.1f} s after it tries to lock"


def second_start(directory: pathlib.Path) -> str:
    """Another pair in the same workdir is refused, also after both processes are killed."""
    slow = {"seconds_per_example": 0.3}
    with Processes(directory, faults=[slow, slow]) as pair:
        pair.wait_for("saved step 4")
        locks = directory / "locks"
        with Processes(directory, faults=[{"locks": str(locks)}] * 2) as second:
            refused = check_refused(second, pair, "run", locks)
        assert all(process.poll() is None for process in pair.processes), pair.log()
        for process in pair.processes:
            process.kill()
    return f"refused {refused}, with host and process; after SIGKILL of both, {_finish(directory)}"


def lines(text: str) -> list[str]:
    """Lines without what differs from run to run. Saves end in a thread, so the order varies."""
    ignored = ("[Gloo]", "warning: the devices wait")
    lines = [line for line in text.splitlines() if not line.startswith(ignored)]
    lines = [re.sub(r"^(compiled|read from the cache) in \d+ s$", "compiled", x) for x in lines]
    lines = [re.sub(r"(image \d+ of \d+|step \d+/\d+  ).*", r"\1", line) for line in lines]
    return sorted(re.sub(r"image \d+ of \d+|\d+\.\d+(e-\d+)?", "#", line) for line in lines)


def _check_quiet(pair: Processes) -> None:
    assert not lines(pair.out(1) + pair.err(1)), pair.log()


def quiet(directory: pathlib.Path) -> str:
    """The output of process 1 is empty, that of process 0 is that of a run on one process."""
    with Processes(directory, environments=slurm_variables(2)) as pair:
        pair.succeed()
    with Processes(
        directory,
        flags=("--workdir=one",),
        faults=[{}],
        environments=[{"JAX_NUM_CPU_DEVICES": "2"}],
    ) as one:
        one.succeed()
    _check_quiet(pair)
    assert lines(pair.out(0)) == lines(one.out(0)), pair.log() + one.log()
    assert lines(pair.err(0)) == lines(one.err(0)), pair.log() + one.log()
    return "found by Slurm's variables; process 1 prints nothing, process 0 what one process prints"


def evaluated(directory: pathlib.Path) -> str:
    """`evaluate` on two processes gives the metrics of one process."""
    with Processes(directory, faults=[{}], environments=[{}]) as one:
        one.succeed()
    metrics = []
    for number in (1, 2):
        flags = ("--checkpoint=run", f"--output=metrics_{number}")
        options = {"environments": [{}]} if number == 1 else {}
        with Processes(directory, "evaluate", flags, faults=[{}] * number, **options) as of:
            of.succeed()
        metrics.append(json.loads((directory / f"metrics_{number}" / "metrics.json").read_text()))
    assert metrics[0] == metrics[1]
    _check_quiet(of)
    return f"metrics.json is that of one process, mIoU {metrics[0]['miou']:.4f}"


def stalled(directory: pathlib.Path) -> str:
    """A process that waits for data for long prints its stacks, once."""
    faults = [{}, {"stall": 16, "seconds_of_stall": 16}]
    with Processes(directory, flags=("--workdir=run", "--stall-timeout=3"), faults=faults) as pair:
        pair.succeed()
        for index in range(2):
            assert pair.err(index).count("Timeout (0:00:03)!") == 1, pair.log()
            assert "nonlocal_jax/train/loop.py" in pair.err(index), pair.log()
    return "both processes print their stacks once, after 3 s, and go on"


SCENARIOS: dict[str, Callable[[pathlib.Path], str]] = {
    **{
        f"SIGKILL of process {process} in {moment}": functools.partial(
            killed, process=process, moment=moment
        )
        for moment in _MOMENTS
        for process in range(2)
    },
    **{
        f"{number.name} to process {process} in {moment}": functools.partial(
            stopped, process=process, moment=moment, number=number
        )
        for number, process, moment in (
            (signal.SIGTERM, 0, "steps"),
            (signal.SIGTERM, 1, "steps"),
            (signal.SIGTERM, 0, "an evaluation"),
            (signal.SIGTERM, 1, "an evaluation"),
            (signal.SIGINT, 0, "steps"),
            (signal.SIGHUP, 1, "an evaluation"),
        )
    },
    **{
        f"an example that process {process} cannot read": functools.partial(
            unreadable, process=process
        )
        for process in range(2)
    },
    **{f"another {fact}": functools.partial(different, fact=fact) for fact in _DIFFERENCES},
    "a second start in a used workdir": second_start,
    "a quiet process 1": quiet,
    "evaluate on two processes": evaluated,
    "a stalled step": stalled,
}
