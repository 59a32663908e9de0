"""The train state: everything that training changes, as one pytree."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from nonlocal_jax.sharding import Shardings, check_shardings
from nonlocal_jax.train.experiment import Experiment


class TrainState(flax.struct.PyTreeNode):
    """The state after ``step`` updates.

    Attributes:
      step: Number of updates, int32.
      params: Parameters of the model.
      batch_stats: Running statistics of its batch norms.
      opt_state: State of the optimizer.
      rng: Random key of the run. It never changes. Each step folds in its number.
      ema: Exponential moving average of the parameters and statistics, like ``variables``. None
        without ``config.train.ema``.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    rng: jax.Array
    ema: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that are evaluated: the moving average if there is one."""
        return self._trained if self.ema is None else self.ema

    @property
    def progress(self) -> dict[str, Any]:
        """What a checkpoint has beside ``variables``."""
        progress = {"step": self.step, "opt_state": self.opt_state, "rng": self.rng}
        return progress if self.ema is None else {**progress, "trained": self._trained}

    @property
    def _trained(self) -> dict[str, Any]:
        return {"params": self.params, "batch_stats": self.batch_stats}

    @classmethod
    def join(cls, variables: dict[str, Any], progress: dict[str, Any]) -> "TrainState":
        """Returns the state that has these ``variables`` and this ``progress``."""
        progress = dict(progress)
        trained = progress.pop("trained", None)
        if trained is None:
            return cls(**variables, **progress)
        return cls(**trained, **progress, ema=variables)

    def with_batch_stats(self, batch_stats: Any) -> "TrainState":
        """Replaces the statistics of ``variables``."""
        if self.ema is None:
            return self.replace(batch_stats=batch_stats)
        return self.replace(ema={**self.ema, "batch_stats": batch_stats})


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
    has_ema = experiment.config.train.get("ema") is not None
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=experiment.tx.init(params),
        rng=rng,
        ema={"params": params, "batch_stats": batch_stats} if has_ema else None,
    )


def abstract_state(
    experiment: Experiment, shardings: Shardings, dtype: jnp.dtype = jnp.float32
) -> TrainState:
    """Returns the shapes, types and shardings of the state, without allocating memory.

    Raises:
      InputError: ``shardings`` is something else, or a rule of it matches no leaf of the state or
        does not fit it.
    """
    check_shardings(shardings)
    shapes = jax.eval_shape(functools.partial(_init_state, experiment, dtype))
    shardings.check_rules(shapes)
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
