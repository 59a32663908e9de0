"""Statistics of batch norms that are averaged over many training batches."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nonlocal_jax._interrupt import Interrupted, until_stopped
from nonlocal_jax._progress import progress
from nonlocal_jax.sharding import Shardings, to_global, use_mesh
from nonlocal_jax.train.experiment import Experiment
from nonlocal_jax.train.state import TrainState


def precise_batch_norm(
    experiment: Experiment,
    shardings: Shardings,
    batches: Callable[..., Iterator[Mapping[str, np.ndarray]]],
) -> Callable[[TrainState], TrainState]:
    """Returns a function that replaces the running statistics of a state by precise ones.

    For N = ``config.train.precise_batch_norm`` training batches, each batch norm computes the mean
    m_k and the biased variance v_k of its inputs, with the parameters of the state. Its statistics
    become those of the N batches together, as in Caffe2's code of the NL paper::

        mean = E[x] = 1/N sum_k m_k
        var = E[x^2] - E[x]^2,  E[x^2] = 1/N sum_k (v_k + m_k^2)

    The batches are the next N of the run from the state's step on, so the result depends only on
    the parameters, the seed and the step. Nothing else of the state changes. If it has a moving
    average, the parameters are the average's, and its statistics change. Frozen batch norms keep
    their statistics. If N is 0 or missing, the function returns the state as it is. If the run is
    to stop, it raises ``Interrupted``.

    Args:
      experiment: See ``create_experiment``.
      shardings: How the state and the batches are sharded.
      batches: Returns the training batches of this process: ``batches(step=step)``, see
        ``data.train_batches``.
    """
    config, task = experiment.config, experiment.task
    number = config.train.get("precise_batch_norm", 0)

    def moments(state, batch):
        with use_mesh(shardings.mesh):
            _, updates = experiment.model.apply(
                shardings.gather(state.variables),
                task.inputs(batch, config),
                train=True,
                mutable=["batch_stats", "batch_moments"],
                rngs={"dropout": jax.random.fold_in(state.rng, state.step)},
            )
        return flatten_dict(updates.get("batch_moments", {}))

    @jax.jit
    def add(stats, count, state, batch):
        """Adds a batch to the statistics of the ``count`` batches before it."""
        flat, new = flatten_dict(stats), moments(state, batch)
        for *norm, name in new:
            if name != "mean":
                continue
            # E[x^2] - E[x]^2 would lose digits, so means and variances are pooled.
            mean, var = (*norm, "mean"), (*norm, "var")
            weight = jnp.asarray(1 / (count + 1), flat[mean].dtype)
            old = {key: jnp.where(count == 0, 0, flat[key]) for key in (mean, var)}
            change = new[mean] - old[mean]
            flat[mean] = old[mean] + weight * change
            spread = new[var] - old[var] + (1 - weight) * jnp.square(change)
            flat[var] = old[var] + weight * spread
        stats = unflatten_dict(flat)
        return jax.lax.with_sharding_constraint(
            stats, shardings.of(state.replace(batch_stats=stats)).batch_stats
        )

    def precise(state: TrainState) -> TrainState:
        if not number:
            return state
        stats = state.variables["batch_stats"]
        with contextlib.closing(batches(step=int(state.step))) as stream:
            first = until_stopped(itertools.islice(stream, number), together=True)
            count = 0
            for batch in progress(first, number, "batch norm statistics", unit="batch"):
                batch = to_global(batch, shardings)
                jax.block_until_ready(stats)  # only one batch waits on the devices
                stats = add(stats, count, state, batch)
                count += 1
        if count < number:  # in all processes
            raise Interrupted
        return state.with_batch_stats(jax.block_until_ready(stats))

    return precise
