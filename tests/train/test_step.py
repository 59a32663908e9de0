import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nonlocal_jax import convert
from nonlocal_jax.errors import InputError
from nonlocal_jax.sharding import Shardings, check_batch_size, make_mesh, to_global
from nonlocal_jax.train import create_experiment, create_state, make_train_step
from tests.helpers import one_device, train


def _setup(config, source):
    experiment, shardings = create_experiment(config), one_device()
    state = create_state(experiment, shardings)
    batch = {key: np.stack([example[key] for example in source[:4]]) for key in ("image", "label")}
    return make_train_step(experiment, shardings), state, to_global(batch, shardings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_step_learns_a_fixed_batch(config, source, dtype):
    config.model.dtype = dtype
    config.steps = 60
    train_step, state, batch = _setup(config, source)
    losses, accuracies = [], []
    for _ in range(30):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
        accuracies.append(float(metrics["accuracy"]))
    assert losses[-1] < 0.9 * losses[0]
    assert accuracies[-1] > accuracies[0]
    assert int(state.step) == 30
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_metrics(config, source):
    train_step, state, batch = _setup(config, source)
    _, metrics = train_step(state, batch)
    names = {"loss", "decode", "aux", "accuracy", "grad_norm", "param_norm", "learning_rate"}
    assert set(metrics) == names
    np.testing.assert_allclose(metrics["loss"], metrics["decode"] + metrics["aux"], rtol=1e-6)
    np.testing.assert_allclose(metrics["learning_rate"], config.optimizer.learning_rate)


def test_micro_batches_and_rematerialization_change_no_number(config, source, x64):
    """Two devices, frozen statistics, and a loss that counts other numbers of pixels each time."""
    config.model.update(norm="frozen_batch_norm", dropout=0.0)
    config.data.batch_size = 8
    config.loss.avg_non_ignore = True
    batch = {key: np.stack([example[key] for example in source[:8]]) for key in ("image", "label")}
    rng = np.random.default_rng(0)
    for row, label in enumerate(batch["label"]):
        label[rng.random(label.shape) < row / 7] = 255  # all pixels of the last example
    shardings = Shardings(make_mesh(jax.devices()[:2]))
    variables = jax.device_get(create_state(create_experiment(config), shardings).variables)
    variables = jax.tree.map(lambda leaf: leaf + 0.1 * rng.random(leaf.shape), variables)

    def run(**changes):
        config.train.update(changes)
        experiment = create_experiment(config)
        state = create_state(experiment, shardings, variables, np.float64)
        with jax.numpy_dtype_promotion("standard"):  # images are float32
            state, metrics = make_train_step(experiment, shardings)(
                state, to_global(batch, shardings)
            )
        del metrics["accuracy"]  # a mean over micro-batches
        return jax.device_get((state.params, metrics))

    whole = run()
    for changes, bound in (
        ({"remat": "full"}, 1e-12),
        ({"remat": "blocks", "accumulate": 4}, 1e-10),
    ):
        other = run(**changes)
        for a, b in zip(*map(jax.tree.leaves, (whole, other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=bound, atol=bound)
    message = r"batch_size=8 is not a multiple of 6, .* 2 devices and train.accumulate=3 split"
    with pytest.raises(InputError, match=message):
        check_batch_size(8, shardings, accumulate=3)


def test_the_moving_average(config, source, tmp_path):
    """It follows the parameters and statistics, and is what is evaluated, saved and loaded."""
    config.train.ema = 0.3
    config.steps = 4
    evaluated = []

    def evaluate(variables):
        evaluated.append(jax.device_get(variables))
        return {"miou": 0.0}

    result = train(config, tmp_path / "run", source, evaluate=evaluate)
    jax.tree.map(np.testing.assert_array_equal, evaluated[-1], result.state.ema)
    loaded = convert.load(tmp_path / "run", config.model)
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(result.state.ema))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    resumed = train(config, tmp_path / "run", source)
    resumed, result = (run.state.replace(rng=None) for run in (resumed, result))
    jax.tree.map(np.testing.assert_array_equal, resumed, result)

    train_step, state, batch = _setup(config, source)
    expected = jax.device_get(state.ema)
    for step in range(3):
        state, _ = train_step(state, batch)
        decay = min(0.3, (1 + step) / (10 + step))
        new = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
        expected = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, expected, new)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        jax.device_get(state.ema),
        expected,
    )
    moved = state.with_batch_stats(0)
    assert (moved.variables["batch_stats"], moved.batch_stats) == (0, state.batch_stats)

    config.train.ema = None
    with pytest.raises(InputError, match=r"train.ema is 0.3 in the checkpoint, None in the config"):
        train(config, tmp_path / "run", source)


def test_batch_statistics_move_and_dropout_depends_on_the_step(config, source):
    train_step, state, batch = _setup(config, source)
    before = jax.device_get(state)
    after, metrics = train_step(state, batch)
    moved = jax.tree.map(np.array_equal, before.batch_stats, jax.device_get(after.batch_stats))
    assert not any(jax.tree.leaves(moved))

    train_step, state, batch = _setup(config, source)
    later = state.replace(step=state.step + 1)
    _, other = train_step(later, batch)
    assert float(other["loss"]) != float(metrics["loss"])
