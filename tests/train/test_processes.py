"""Runs of two processes, as on a pod of two hosts."""

import itertools
import pickle
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from nonlocal_jax.configs.common import base_config
from nonlocal_jax.data import train_batches
from nonlocal_jax.sharding import Shardings, make_mesh
from tests.helpers import child_environment, free_port, read_metrics, train
from tests.pods.pair import Processes
from tests.pods.processes import SLOW_STEPS, both, late_images, lines, wait_for_images
from tests.train import layout_in_processes


def _losses(workdir):
    records = read_metrics(workdir)
    losses = {r["step"]: r["train/loss"] for r in records if "train/loss" in r}
    assert list(losses) == list(range(1, 61))
    return list(losses.values())


@pytest.mark.parametrize("context", [1, 2])
def test_a_signal_stops_both_and_one_process_goes_on(
    config, source, tmp_path, compilation_cache, context
):
    """SIGTERM to process 1 in an evaluation, SIGHUP to process 0 in a step that both share."""
    config.steps = 60
    # Slow enough that rounding does not part the runs.
    config.optimizer.learning_rate = 0.01
    config.train.update(checkpoint_every=60, evaluate_every=4)
    in_evaluation = context == 1
    flags = [
        "--workdir=run",
        "--config.steps=60",
        "--config.train.checkpoint_every=60",
        f"--config.train.evaluate_every={4 if in_evaluation else 60}",
        f"--config.mesh.context={context}",
    ]
    faults = both(tmp_path, {"seconds_per_image": 2} if in_evaluation else SLOW_STEPS)
    cache = compilation_cache["JAX_COMPILATION_CACHE_DIR"]
    with Processes(tmp_path, flags=flags, faults=faults, cache=cache) as pair:
        pair.wait_for("step 3/")
        if in_evaluation:
            wait_for_images(pair, tmp_path)
        pair.processes[context % 2].send_signal(signal.SIGTERM if in_evaluation else signal.SIGHUP)
        begin = time.time()
        assert [status for status, _ in pair.ends()] == [0, 0], pair.log()
    name = "SIGTERM" if in_evaluation else "SIGHUP"
    saved = int(re.search(rf"{name}: saved step (\d+); run the same", pair.out(0))[1])
    assert f"\nsaved step {saved}\n" in pair.out(0)
    assert saved == 4 if in_evaluation else 3 <= saved < 60
    if in_evaluation:
        assert late_images(tmp_path, begin) == 0, pair.log()
    # Process 1 prints nothing, and process 0 what one process prints.
    assert not lines(pair.out(1)), pair.log()

    config.mesh.context = 1
    train(config, tmp_path / "run", source)
    train(config, tmp_path / "undisturbed", source)
    np.testing.assert_allclose(
        _losses(tmp_path / "run"), _losses(tmp_path / "undisturbed"), rtol=1e-5
    )


def test_the_layout_changes_neither_batches_nor_losses(tmp_path, compilation_cache):
    """1 process with 2 devices, 2 with 1 and 2 with 2, with dropout."""
    config = base_config("layout", task="layout", steps=60, learning_rate=0.1, weight_decay=0.0)
    config.model = {"network": "layout"}
    config.data.batch_size = 8
    config.train.update(log_every=1, checkpoint_every=60)
    rng = np.random.default_rng(0)
    source = [
        {
            "signal": rng.standard_normal((6, 2), np.float32),
            "label": rng.integers(0, 2, 1, np.int32),
            "weight": np.ones(1, np.float32),
        }
        for _ in range(20)
    ]
    arguments = tmp_path / "arguments"
    arguments.write_bytes(pickle.dumps((config, source)))
    script = layout_in_processes.__file__
    processes = []
    for devices in "12":
        address = f"localhost:{free_port()}"
        processes += [
            subprocess.Popen(
                [sys.executable, script, arguments, tmp_path / devices, devices, address, index],
                stderr=subprocess.PIPE,
                text=True,
                env=child_environment(**compilation_cache),
            )
            for index in "01"
        ]
    train(config, tmp_path / "one", source, shardings=Shardings(make_mesh(jax.devices()[:2])))
    ends = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, ends

    for devices in "12":
        np.testing.assert_allclose(
            _losses(tmp_path / devices), _losses(tmp_path / "one"), rtol=1e-5
        )
        held = [pickle.loads((tmp_path / devices / f"held_{index}").read_bytes()) for index in "01"]
        batches = train_batches(
            source,
            lambda example, rng: layout_in_processes.prepare(example, config, rng),
            batch_size=8,
            seed=config.seed,
        )
        rows = [set(), set()]
        for batch, *shards in zip(itertools.islice(batches, 10), *held, strict=True):
            for process in range(2):
                for name, (first, stop, _), array in shards[process]:
                    np.testing.assert_array_equal(array, batch[name][first:stop])
                    rows[process].update(range(first, stop))
        assert rows[0] | rows[1] == set(range(8))
        assert not rows[0] & rows[1]
    assert rows[0] == {0, 1, 4, 5}
