"""The state of a run split over processes, and programs that are compiled once."""

import json
import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np

from nonlocal_jax import convert
from tests.helpers import read_metrics
from tests.pods.pair import Processes

_FSDP = ("--workdir=run", "--config.mesh.fsdp=2", "--config.train.ema=0.9")


def _losses(workdir: pathlib.Path) -> list[float]:
    return [r["train/loss"] for r in read_metrics(workdir) if "train/loss" in r]


def sharded(directory: pathlib.Path) -> str:
    """Two processes hold half of the state each. One process goes on with it."""
    of_pair, of_one = (directory / f"records_{number}" for number in (2, 1))
    for path in (of_pair, of_one):
        path.mkdir()
    one_process = {"faults": [{"record": str(of_one)}], "environments": [{}]}
    ema = "--config.train.ema=0.9"
    with Processes(directory, flags=("--workdir=one", ema), **one_process) as one:
        one.succeed()
    with Processes(directory, flags=_FSDP, faults=[{"record": str(of_pair)}] * 2) as pair:
        pair.succeed()
    run, other = directory / "run", directory / "one"
    np.testing.assert_allclose(_losses(run), _losses(other), rtol=1e-4)
    model = json.loads((run / "config.json").read_text())["model"]
    variables = [convert.load(path, model) for path in (run, other)]
    differences = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), *variables)
    worst = max(jax.tree.leaves(differences))
    assert worst < 1e-3, worst
    # Step 8 of the pair, and the steps after it on one process.
    losses = _losses(run)
    shutil.rmtree(run / "checkpoints" / "12")
    with Processes(directory, flags=("--workdir=run", ema), **one_process) as resumed:
        resumed.succeed()
        assert "from step 8 of 12" in resumed.out(0), resumed.log()
    for name, saved in (("restored_8", "saved_8"), ("batch_9", "batch_9")):
        with np.load(of_one / f"{name}.npz") as a, np.load(of_pair / f"{saved}.npz") as b:
            assert a.files == b.files
            for file in a.files:
                np.testing.assert_array_equal(a[file], b[file])
    np.testing.assert_allclose(_losses(run), losses, rtol=1e-4)
    return (
        f"variables within {worst:.1e} of one process; one process goes on from step 8 of the "
        "pair, with the same state and the same next batch bit for bit"
    )


def compiled_once(directory: pathlib.Path) -> str:
    """The second start of a pair finds all its programs in the cache."""
    entries = []
    for start in range(2):
        flags = (f"--workdir=run_{start}", "--compilation-cache=cache")
        with Processes(directory, flags=flags) as pair:
            pair.succeed()
            expected = "read from the cache in" if start else "compiled in"
            assert f"\n{expected} " in pair.out(0), pair.log()
            assert "WARNING" not in pair.err(0) + pair.err(1), pair.log()
        entries.append({path.name for path in (directory / "cache").glob("*-cache")})
    assert entries[0] == entries[1]
    parts = (
        convert.load(
            directory / f"run_{start}",
            json.loads((directory / f"run_{start}" / "config.json").read_text())["model"],
        )
        for start in range(2)
    )
    jax.tree.map(np.testing.assert_array_equal, *parts)
    return f"{len(entries[0])} programs, none of them compiled again; same parameters, bit for bit"


SCENARIOS: dict[str, Callable[[pathlib.Path], str]] = {
    "a state that two processes share": sharded,
    "a second start with a compilation cache": compiled_once,
}
