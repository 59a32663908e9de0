"""One run of two processes, as on a pod of two hosts."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from nonlocal_jax.train import train

_RUN = """
import pickle, sys, time
import jax
from nonlocal_jax.evaluation import evaluator
from nonlocal_jax.train import train

class Slow(list):
    # So that a signal finds the run in the middle.
    def __getitem__(self, index):
        time.sleep(0.02)
        return super().__getitem__(index)

arguments, workdir, address, index = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
with open(arguments, "rb") as file:
    config, examples = pickle.load(file)
result = train(config, workdir, Slow(examples), evaluate=evaluator(config, examples[:2]))
print("stopped by", result.signal and result.signal.name, "at step", int(result.state.step))
"""


def _losses(workdir):
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records if "loss" in record}


@pytest.mark.parametrize("context", [1, 2])
def test_sigterm_stops_both_and_one_process_goes_on(
    config, source, tmp_path, compilation_cache, context
):
    """Each process has its own images, or both have the same and share them."""
    config.steps = 60
    config.mesh.context = context
    # Two processes put the images of a batch in another order, under other dropout masks.
    config.model.dropout = 0.0
    # Slow enough that rounding does not part the runs.
    config.optimizer.learning_rate = 0.01
    config.train.update(checkpoint_every=60, evaluate_every=2)
    (tmp_path / "arguments").write_bytes(pickle.dumps((config, source)))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", _RUN, str(tmp_path / "arguments"), str(tmp_path / "run")]
    processes = [
        subprocess.Popen(
            [*command, address, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **compilation_cache, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for index in range(2)
    ]
    while not processes[0].stdout.readline().startswith("step 3/"):
        assert processes[0].poll() is None, processes[0].stderr.read()
    processes[1].send_signal(signal.SIGTERM)
    ends = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    saved = int(ends[0][0].split()[-1])
    assert all(out.endswith(f"stopped by SIGTERM at step {saved}\n") for out, _ in ends)
    assert 3 <= saved < 60
    # Each process inferred images of its own, with its own devices.
    assert "evaluated  miou" in ends[0][0]

    config.mesh.context = 1
    train(config, tmp_path / "run", source)
    train(config, tmp_path / "undisturbed", source)
    losses, expected = _losses(tmp_path / "run"), _losses(tmp_path / "undisturbed")
    assert list(losses) == list(range(1, 61))
    np.testing.assert_allclose(
        [losses[step] for step in range(1, 61)], [expected[step] for step in range(1, 61)], 1e-5
    )
