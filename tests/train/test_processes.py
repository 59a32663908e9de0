"""One run of two processes, as on a pod of two hosts."""

import signal

import numpy as np
import pytest

from tests.helpers import read_metrics, train, wait_for_step


def _losses(workdir):
    records = read_metrics(workdir)
    return {record["step"]: record["train/loss"] for record in records if "train/loss" in record}


@pytest.mark.parametrize("context", [1, 2])
def test_sigterm_stops_both_and_one_process_goes_on(
    config, source, tmp_path, start, unused_port, context
):
    """Each process has its own images, or both have the same and share them."""
    config.steps = 60
    config.mesh.context = context
    # Two processes put the images of a batch in another order, under other dropout masks.
    config.model.dropout = 0.0
    # Slow enough that rounding does not part the runs.
    config.optimizer.learning_rate = 0.01
    config.train.update(checkpoint_every=60, evaluate_every=2)
    processes = [start(f"localhost:{unused_port}", str(index)) for index in range(2)]
    wait_for_step(processes[0], 3)
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
