"""The train state: everything that training changes, as one pytree."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from nonlocal_jax.sharding import Shardings
from nonlocal_jax.train.experiment import Experiment


class TrainState(flax.struct.PyTreeNode):
    """The state after ``step`` updates.

    Attributes:
      step: Number of updates, int32.
      params: Parameters of the model.
      batch_stats: Running statistics of its batch norms.
      opt_state: State of the optimizer.
      rng: Random key of the run. It never changes. Each step folds in its number.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    rng: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that ``model.apply`` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def _init_state(
    experiment: Experiment, dtype: jnp.dtype, variables: Mapping[str, Any] | None = None
) -> TrainState:
    init_key, rng = jax.random.split(jax.random.key(experiment.config.seed))
    if variables is None:
        inputs = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), experiment.example_inputs()
        )
        variables = experiment.model.init(init_key, inputs)
    params, batch_stats = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype),
        (variables["params"], variables.get("batch_stats", {})),
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=experiment.tx.init(params),
        rng=rng,
    )


def abstract_state(
    experiment: Experiment, shardings: Shardings, dtype: jnp.dtype = jnp.float32
) -> TrainState:
    """Returns the shapes, types and shardings of the state, without allocating memory."""
    shapes = jax.eval_shape(functools.partial(_init_state, experiment, dtype))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings.of(shapes),
    )


def create_state(
    experiment: Experiment,
    shardings: Shardings,
    variables: Mapping[str, Any] | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> TrainState:
    """Creates the initial state, on the devices of the mesh.

    One compiled program creates all leaves. A leaf created outside of it would be on only one
    device, and Orbax could not save it from several processes.

    Args:
      experiment: See ``create_experiment``. Its seed determines the parameters and ``state.rng``.
      shardings: How the state is sharded.
      variables: Initial values ``{"params": ..., "batch_stats": ...}``. Default: random parameters.
      dtype: Type of the parameters and statistics. float64 is for exact comparisons.
    """
    target = abstract_state(experiment, shardings, dtype)
    init = jax.jit(
        functools.partial(_init_state, experiment, dtype),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, target),
        # The program runs once, and optimizing it takes longer than running it.
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return init(variables)
