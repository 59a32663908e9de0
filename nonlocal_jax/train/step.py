"""The train step: one update of the state, a pure function that is compiled once."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from nonlocal_jax.sharding import Shardings, use_mesh
from nonlocal_jax.train.experiment import Experiment
from nonlocal_jax.train.state import TrainState

TrainStep = Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(experiment: Experiment, shardings: Shardings) -> TrainStep:
    """Makes the jitted ``train_step(state, batch) -> (state, metrics)``.

    The batch is a pytree whose leaves begin with the batch axis, sharded by ``shardings.batch``.
    Batch norms use the statistics of the global batch. The memory of the old state is donated to
    the new state, which has the same shardings.

    The metrics are replicated scalars: "loss" and the parts that the task adds, "grad_norm" over
    all parameters, "param_norm" after the update, and the "learning_rate" of this step.
    """
    config, task = experiment.config, experiment.task

    def train_step(state, batch):
        def compute_loss(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            outputs, updates = experiment.model.apply(
                shardings.gather(variables),
                task.inputs(batch, config),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(state.rng, state.step)},
            )
            loss, parts = task.loss(outputs, batch, config)
            return loss, (parts, updates.get("batch_stats", {}))

        with use_mesh(shardings.mesh):
            (loss, aux), grads = jax.value_and_grad(compute_loss, has_aux=True)(state.params)
        parts, batch_stats = aux
        updates, opt_state = experiment.tx.update(grads, state.opt_state, state.params)
        new_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        metrics = {
            "loss": loss,
            **parts,
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(new_state.params),
            "learning_rate": experiment.schedule(state.step),
        }
        places = shardings.of(new_state), jax.tree.map(lambda _: shardings.replicated, metrics)
        return jax.lax.with_sharding_constraint((new_state, metrics), places)

    return jax.jit(train_step, donate_argnums=0)
