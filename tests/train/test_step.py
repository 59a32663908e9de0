import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nonlocal_jax import create_model
from nonlocal_jax.train import create_optimizer, create_state, make_mesh, make_train_step, to_global


def _setup(config, source):
    mesh = make_mesh()
    model = create_model(config.model)
    tx, _ = create_optimizer(config)
    state = create_state(model, tx, mesh=mesh, seed=0, image_size=config.data.crop)
    batch = {key: np.stack([example[key] for example in source[:4]]) for key in ("image", "label")}
    return make_train_step(model, config, mesh), state, to_global(batch, mesh)


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
