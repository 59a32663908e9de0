"""Runs that are killed or stopped, in processes of their own."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from nonlocal_jax.train import load_variables, train

_RUN = """
import pickle, sys, time
from nonlocal_jax.train import train

class Slow:
    # So that a signal finds the run in the middle.
    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        time.sleep(0.02)
        return self.examples[index]

with open(sys.argv[1], "rb") as file:
    config, examples = pickle.load(file)
result = train(config, sys.argv[2], Slow(examples))
print("stopped by", result.signal and result.signal.name, "at step", int(result.state.step))
"""


@pytest.fixture
def start(config, source, tmp_path, compilation_cache):
    """Starts the run in a process and waits until it has done so many steps."""
    config.steps = 40
    config.train.update(checkpoint_every=4, evaluate_every=40)
    (tmp_path / "arguments").write_bytes(pickle.dumps((config, source)))
    command = [sys.executable, "-c", _RUN, str(tmp_path / "arguments"), str(tmp_path / "run")]
    environment = {**os.environ, **compilation_cache, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(steps):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        line = process.stdout.readline()
        while line and not any(line.startswith(f"step {n}/") for n in range(steps, 41)):
            line = process.stdout.readline()
        return process

    return start


def _records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "images_per_second": None} for line in lines]


def test_killed_and_stopped_runs_end_as_an_undisturbed_one(config, source, tmp_path, start):
    """SIGKILL at a random step, SIGTERM at a later one, then on to the end: bit for bit."""
    steps = random.randint(1, 15)
    killed = start(steps)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL

    stopped = start(random.randint(steps, 25))
    stopped.terminate()
    out, err = stopped.communicate()
    assert stopped.returncode == 0, err
    saved = int(out.split()[-1])
    assert out.endswith(f"stopped by SIGTERM at step {saved}\n")
    assert steps <= saved < 40
    assert (tmp_path / "run" / "checkpoints" / str(saved)).is_dir()

    finished = start(saved + 1)
    out, err = finished.communicate()
    assert finished.returncode == 0, err
    assert out.endswith("stopped by None at step 40\n")

    train(config, tmp_path / "undisturbed", source)
    runs = [load_variables(tmp_path / name, config.model) for name in ("run", "undisturbed")]
    for a, b in zip(*map(jax.tree.leaves, runs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert _records(tmp_path / "run") == _records(tmp_path / "undisturbed")
