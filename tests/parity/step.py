"""Our training steps, to compare with mmsegmentation."""

from collections.abc import Iterator, Mapping
from typing import Any

import formula
import jax
import jax.numpy as jnp
import numpy as np

from nonlocal_jax.sharding import Shardings, make_mesh
from nonlocal_jax.train import (
    TrainState,
    create_experiment,
    create_state,
    loss_fn,
    make_train_step,
)

STEPS, BATCH = 5, 2


def make_step(model, config):
    """(variables, images, labels) -> losses, gradients, new statistics, without the optimizer."""

    @jax.jit
    def step(variables, images, labels):
        def loss(params):
            outputs, updates = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            total, parts = loss_fn(outputs, labels, config.loss)
            return total, ({"loss": total, **parts}, updates["batch_stats"])

        gradients, (losses, statistics) = jax.grad(loss, has_aux=True)(variables["params"])
        return losses, gradients, statistics

    return step


def make_batches(config, size: tuple[int, int]) -> list[dict[str, np.ndarray]]:
    """A batch of gray levels and labels for each step.

    The gray levels are float64, because our train step then normalizes them in float64.
    """
    images = formula.images(STEPS * BATCH, *size) * config.data.std + config.data.mean
    labels = formula.labels(STEPS * BATCH, *size, config.model.num_classes)
    pairs = zip(np.split(images, STEPS), np.split(labels, STEPS), strict=True)
    return [{"image": image, "label": label} for image, label in pairs]


def train(
    config, variables: Mapping[str, Any], batches: list[dict[str, np.ndarray]]
) -> Iterator[tuple[TrainState, dict[str, Any]]]:
    """Yields the state after each step, and the metrics of the step, in float64."""
    experiment, shardings = create_experiment(config), Shardings(make_mesh(jax.devices()[:1]))
    state = create_state(experiment, shardings, variables, jnp.float64)
    train_step = make_train_step(experiment, shardings)
    for batch in batches:
        state, metrics = train_step(state, batch)
        yield jax.device_get((state, metrics))
