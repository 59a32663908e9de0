"""Runs that are killed or stopped, in processes of their own."""

import signal

import jax
import numpy as np

from nonlocal_jax import convert
from tests.helpers import read_metrics, train, wait_for_step


def test_killed_and_stopped_runs_end_as_an_undisturbed_one(config, source, tmp_path, start):
    """SIGKILL before a save and between two saves, SIGTERM, then on to the end: bit for bit."""
    config.steps = 24
    config.train.update(checkpoint_every=4, evaluate_every=24)
    for step in (2, 6):
        killed = start()
        wait_for_step(killed, step)
        killed.kill()
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL

    stopped = start()
    wait_for_step(stopped, 10)
    stopped.terminate()
    out, err = stopped.communicate()
    assert stopped.returncode == 0, err
    saved = int(out.split()[-1])
    assert out.endswith(f"stopped by SIGTERM at step {saved}\n")
    assert 10 <= saved < 24
    assert (tmp_path / "run" / "checkpoints" / str(saved)).is_dir()

    for name in ("run", "undisturbed"):
        result = train(config, tmp_path / name, source)
        assert (result.signal, int(result.state.step)) == (None, 24)
    runs = [convert.load(tmp_path / name, config.model) for name in ("run", "undisturbed")]
    for a, b in zip(*map(jax.tree.leaves, runs), strict=True):
        np.testing.assert_array_equal(a, b)
    records = [read_metrics(tmp_path / name) for name in ("run", "undisturbed")]
    for record in (*records[0], *records[1]):
        record.pop("train/examples_per_second", None)
        record.pop("train/data_wait", None)
    assert records[0] == records[1]
