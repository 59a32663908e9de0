import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nonlocal_jax.sharding import to_global
from nonlocal_jax.train import create_experiment, create_state, make_train_step
from tests.helpers import one_device


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
