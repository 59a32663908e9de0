"""The train step: one update of the state, a pure function that is compiled once."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from nonlocal_jax.sharding import Shardings, check_shardings, use_mesh
from nonlocal_jax.train.experiment import Experiment
from nonlocal_jax.train.state import TrainState

TrainStep = Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(experiment: Experiment, shardings: Shardings) -> TrainStep:
    """Makes the jitted ``train_step(state, batch) -> (state, metrics)``.

    The batch is a pytree whose leaves begin with the batch axis, sharded by ``shardings.batch``.
    Batch norms use the statistics of the global batch. The memory of the old state is donated to
    the new state, which has the same shardings.

    With ``config.train.accumulate`` = K, the step computes K micro-batches one after the other and
    adds up their gradients: those of the examples i, i + K, i + 2K, ... for i = 0, ..., K - 1. The
    loss and its gradient are those of the whole batch, also if the loss counts only some labels.
    Batch norms use the statistics of a micro-batch, and update the running ones K times. Other
    parts than losses, such as an accuracy, are averaged like the loss.

    With ``config.train.ema`` = d, ``state.ema`` moves towards the new parameters and statistics v
    after step t = 0, 1, ...::

        ema <- a ema + (1 - a) v,   a = min(d, (1 + t) / (10 + t))

    The metrics are replicated scalars: "loss" and the parts that the task adds, "grad_norm" over
    all parameters, "param_norm" after the update, and the "learning_rate" of this step.
    """
    check_shardings(shardings)
    config, task = experiment.config, experiment.task
    accumulate, ema_decay = config.train.get("accumulate", 1), config.train.get("ema")

    def gradients(params, batch_stats, batch, key):
        """Returns the gradient, the loss and its parts, and the updated statistics."""

        def compute_loss(params):
            outputs, updates = experiment.model.apply(
                shardings.gather({"params": params, "batch_stats": batch_stats}),
                task.inputs(batch, config),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            loss, parts = task.loss(outputs, batch, config)
            return loss, ({"loss": loss, **parts}, updates.get("batch_stats", {}))

        grads, (losses, batch_stats) = jax.grad(compute_loss, has_aux=True)(params)
        return grads, losses, batch_stats

    def accumulated(state, batch, key):
        """Returns the result of ``gradients``, computed in micro-batches."""
        spec = PartitionSpec(None, *shardings.batch_spec)

        def split(x):
            # Every device has an equal number of examples of each micro-batch already.
            x = x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)
            return jax.lax.with_sharding_constraint(x, NamedSharding(shardings.mesh, spec))

        def share(micro_batch):
            """The share of the loss of a micro-batch in that of the batch."""
            if task.loss_weight is None:
                return jnp.asarray(1 / accumulate, float)
            weights = (task.loss_weight(b, config) for b in (micro_batch, batch))
            return operator.truediv(*(jnp.asarray(weight, float) for weight in weights))

        def add(carry, scanned):
            total, batch_stats = carry
            number, micro_batch = scanned
            key_of_number = jax.random.fold_in(key, number)
            grads, losses, batch_stats = gradients(
                state.params, batch_stats, micro_batch, key_of_number
            )
            factor = share(micro_batch)
            grads, losses = jax.tree.map(lambda x: x * factor.astype(x.dtype), (grads, losses))
            total = jax.tree.map(jnp.add, total, grads)
            total = jax.lax.with_sharding_constraint(total, shardings.of(state).params)
            return (total, batch_stats), losses

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        scanned = jnp.arange(accumulate), jax.tree.map(split, batch)
        (grads, batch_stats), losses = jax.lax.scan(add, (zeros, state.batch_stats), scanned)
        return grads, jax.tree.map(jnp.sum, losses), batch_stats

    def train_step(state, batch):
        key = jax.random.fold_in(state.rng, state.step)
        with use_mesh(shardings.mesh):
            if accumulate == 1:
                grads, losses, batch_stats = gradients(state.params, state.batch_stats, batch, key)
            else:
                grads, losses, batch_stats = accumulated(state, batch, key)
        updates, opt_state = experiment.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = jax.tree.map(
                lambda old, new: new + decay.astype(new.dtype) * (old - new),
                ema,
                {"params": params, "batch_stats": batch_stats},
            )
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema,
        )
        metrics = {
            **losses,
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(new_state.params),
            "learning_rate": experiment.schedule(state.step),
        }
        places = shardings.of(new_state), jax.tree.map(lambda _: shardings.replicated, metrics)
        return jax.lax.with_sharding_constraint((new_state, metrics), places)

    return jax.jit(train_step, donate_argnums=0)
