"""Precise statistics of batch norms, in evaluations and in the last checkpoint."""

import functools
import itertools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from nonlocal_jax import convert
from nonlocal_jax.configs._video import classification_config
from nonlocal_jax.data import train_batches
from nonlocal_jax.data.videos import FrameArray
from nonlocal_jax.sharding import Shardings, make_mesh, to_global
from nonlocal_jax.tasks import get_task
from nonlocal_jax.train import create_experiment, create_state
from nonlocal_jax.train import precise_batch_norm as precise_module
from nonlocal_jax.train.precise_batch_norm import precise_batch_norm
from tests.helpers import free_port, one_device, read_metrics, train, wait_for_step
from tests.train import clip_network  # noqa: F401  # registers the network


@pytest.fixture
def config():
    config = classification_config(
        "tiny",
        dataset="own",
        num_classes=3,
        block="none",
        steps=4,
        learning_rate=0.1,
        weight_decay=0.0,
    )
    # So small that no product is split over threads: their number would change bits.
    config.model = {"network": "clip", "num_classes": 3, "norm_group_size": None}
    config.data.update(batch_size=8, frames=2, interval=1, short_side=(8, 10), crop=8)
    config.evaluation.update(clips=2, crops=3, short_side=10, crop=8, average="logits")
    config.train.update(log_every=1, checkpoint_every=2, evaluate_every=2, precise_batch_norm=3)
    return config


@pytest.fixture(scope="session")
def source():
    """Videos whose brightness determines the class."""
    rng = np.random.default_rng(0)
    labels = [i % 3 for i in range(10)]
    return [
        {
            "video": FrameArray(rng.integers(0, 100, (4, 16, 20, 3), np.uint8) + np.uint8(70 * k)),
            "label": k,
            "id": str(i),
        }
        for i, k in enumerate(labels)
    ]


def _same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, *map(jax.device_get, (a, b)))))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("group_size", "devices"), [(None, 8), (2, 4)])
def test_they_are_the_statistics_of_all_batches(config, source, group_size, devices):
    config.model.norm_group_size = group_size
    config.data.update(mean=(0, 0, 0), std=(1, 1, 1))  # exact in float32
    experiment = create_experiment(config)
    shardings = Shardings(make_mesh(jax.devices()[:devices]))
    state = create_state(experiment, shardings, dtype=jnp.float64).replace(step=jnp.int32(5))
    transform = functools.partial(experiment.task.prepare, config=config)
    batches = functools.partial(
        train_batches, source, lambda e, rng: transform(e, rng=rng), batch_size=8, seed=0
    )
    precise = precise_batch_norm(experiment, shardings, batches)
    new = precise(state)
    assert _same(*(s.replace(batch_stats=0, rng=0) for s in (new, state)))
    running = jax.tree.map(lambda a: a + jnp.nan, state.batch_stats)
    assert _same(new.batch_stats, precise(state.replace(batch_stats=running)).batch_stats)

    inputs = {"bn1": [], "bn2": []}
    for batch in itertools.islice(batches(step=5), 3):
        _, captured = experiment.model.apply(
            jax.device_get(state.variables),
            experiment.task.inputs(batch, config),
            train=True,
            mutable=["intermediates", "batch_stats"],
            capture_intermediates=True,
            rngs={"dropout": jax.random.key(0)},
        )
        for i in "12":
            (x,) = captured["intermediates"][f"conv{i}"]["__call__"]
            inputs[f"bn{i}"].append(np.asarray(x).reshape(-1, 4))
    for name, parts in inputs.items():
        x = np.concatenate(parts)
        np.testing.assert_allclose(new.batch_stats[name]["mean"], x.mean(0), rtol=1e-9)
        np.testing.assert_allclose(new.batch_stats[name]["var"], x.var(0), rtol=1e-9)


def test_frozen_norms_keep_their_statistics(config, source):
    block = {"block": "nonlocal", "block_at": ("layer1.0",)}
    sizes = {"num_classes": 3, "stage_sizes": (1,), "strides": (1,), "width": 2}
    config.model = {"network": "video", "norm": "frozen_batch_norm", **block, **sizes}
    experiment = create_experiment(config)
    state = create_state(experiment, one_device())
    transform = functools.partial(experiment.task.prepare, config=config)
    batches = functools.partial(
        train_batches, source, lambda e, rng: transform(e, rng=rng), batch_size=8, seed=0
    )
    new = precise_batch_norm(experiment, one_device(), batches)(state)
    old, new = (flatten_dict(s.batch_stats, sep="/") for s in (state, new))
    changed = {path for path in old if not np.array_equal(old[path], new[path])}
    assert changed == {f"backbone/layer1_0_block/norm/{name}" for name in ("mean", "var")}
    assert len(old) > len(changed)


def test_training_goes_on_with_the_running_ones(config, source, tmp_path, capsys):
    seen = []

    def evaluate(variables):
        seen.append(jax.device_get(variables))
        return {"top1_1clip": 0.5}

    precise = train(config, tmp_path / "precise", source, evaluate=evaluate)
    assert "batch norm statistics: batch 3 of 3" in capsys.readouterr().err
    config.train.precise_batch_norm = 0
    plain = train(config, tmp_path / "plain", source)
    assert _same(precise.state.params, plain.state.params)
    saved = {
        (name, step): convert.load(tmp_path / name / "checkpoints" / str(step), config.model)
        for name in ("precise", "plain")
        for step in (2, 4)
    }
    assert _same(saved["precise", 2], saved["plain", 2])
    assert _same(seen[0]["params"], saved["plain", 2]["params"])
    assert not _same(seen[0]["batch_stats"], saved["plain", 2]["batch_stats"])
    # The last state, its checkpoint and its evaluation have the precise ones.
    assert not _same(precise.state.batch_stats, plain.state.batch_stats)
    assert _same(precise.state.variables, saved["precise", 4])
    assert _same(precise.state.variables, seen[1])


def test_they_are_the_same_after_sigkill(config, source, tmp_path, start):
    config.steps = 16
    config.train.update(checkpoint_every=4, evaluate_every=8)
    killed = start(imports=["tests.train.clip_network"])
    wait_for_step(killed, 6)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    seen = {"run": [], "other": []}
    states = []
    for name, variables in seen.items():

        def evaluate(given, variables=variables):
            variables.append(jax.device_get(given))
            return {"top1_1clip": 0.5}

        states.append(train(config, tmp_path / name, source, evaluate=evaluate).state)
    assert len(seen["run"]) == 2
    assert _same(seen["run"], seen["other"])
    assert _same(*(state.replace(rng=0) for state in states))


@pytest.mark.parametrize("steps", [1, 4])
def test_a_stop_during_the_last_ones_repeats_only_the_last_step(
    config, source, tmp_path, monkeypatch, steps
):
    def stop(batch, shardings):
        calls.append(batch)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return to_global(batch, shardings)

    calls = []
    config.steps = steps
    config.train.checkpoint_every = 100
    expected = train(config, tmp_path / "undisturbed", source)
    with monkeypatch.context() as patch:
        patch.setattr(precise_module, "to_global", stop)
        stopped = train(config, tmp_path / "run", source)
    assert (stopped.signal, int(stopped.state.step)) == (signal.SIGTERM, steps - 1)
    assert len(calls) == 2
    saved = [path.name for path in (tmp_path / "run").glob("checkpoints/*")]
    assert saved == ([str(steps - 1)] if steps > 1 else [])
    result = train(config, tmp_path / "run", source)
    assert (result.signal, int(result.state.step)) == (None, steps)
    assert _same(*(r.state.replace(rng=0) for r in (result, expected)))
    steps_of = [[r["step"] for r in read_metrics(tmp_path / n)] for n in ("run", "undisturbed")]
    assert steps_of[0] == steps_of[1]


def test_two_processes_stop_during_the_last_ones(config, source, tmp_path, start):
    config.train.update(precise_batch_norm=1000, evaluate_every=100)
    address = f"localhost:{free_port()}"
    both = [start(address, str(i), imports=["tests.train.clip_network"]) for i in (0, 1)]
    wait_for_step(both[0], 4)
    both[1].terminate()
    for process in both:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out.endswith("stopped by SIGTERM at step 3\n")
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()
    assert not (tmp_path / "run" / "checkpoints" / "4").exists()


def test_zero_batches_keep_the_running_ones(config):
    config.train.precise_batch_norm = 0
    experiment = create_experiment(config)
    state = create_state(experiment, one_device())
    assert precise_batch_norm(experiment, one_device(), None)(state) is state


def test_a_run_on_eight_devices_is_that_on_one(config, source, tmp_path):
    """Pairs of devices share each clip, and pairs of clips are normalized together."""
    config.steps = 3
    config.train.evaluate_every = 3
    config.model.norm_group_size = 2
    config.mesh.context = 2
    runs = []
    for devices in (1, 8):
        shardings = Shardings(make_mesh(jax.devices()[:devices], context=min(2, devices)))
        evaluate = get_task(config).evaluator(config, source, quick=True)
        workdir = tmp_path / str(devices)
        train(config, workdir, source, evaluate=evaluate, shardings=shardings)
        runs.append(read_metrics(workdir))
    for one, eight in zip(*runs, strict=True):
        assert one.keys() == eight.keys()
        for name in one.keys() - {"train/examples_per_second", "train/data_wait"}:
            np.testing.assert_allclose(one[name], eight[name], rtol=1e-4)
    assert {"step", "val/top1_1clip", "val/mean_class_accuracy_1clip"} == set(runs[0][-1])
    assert (tmp_path / "8" / "curves.png").is_file()
