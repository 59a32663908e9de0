"""Everything that training changes, as one pytree."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from nonlocal_jax.sharding import replicated


class TrainState(flax.struct.PyTreeNode):
    """The state after ``step`` updates.

    Attributes:
      step: number of updates done, int32.
      params: parameters of the network.
      batch_stats: running statistics of its batch norms.
      opt_state: of the optax optimizer.
      rng: key of the run; a step folds its number in, so the key itself never changes.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    rng: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """What ``model.apply`` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    variables: Mapping[str, Any] | None = None,
    *,
    seed: int,
    image_size: tuple[int, int],
    dtype: jnp.dtype = jnp.float32,
) -> TrainState:
    """The state before the first step; a pure function, to be jitted or evaluated for its shape.

    Args:
      model: the network.
      tx: the optimizer.
      variables: ``{"params", "batch_stats"}`` to start from in place of random ones.
      seed: makes the random parameters and ``state.rng``.
      image_size: (height, width) of the training crops.
      dtype: of parameters and statistics; float64 is for exact comparisons.
    """
    init_key, rng = jax.random.split(jax.random.key(seed))
    if variables is None:
        variables = model.init(init_key, jnp.zeros((1, *image_size, 3)))
    params, batch_stats = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype), (variables["params"], variables["batch_stats"])
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        rng=rng,
    )


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    variables: Mapping[str, Any] | None = None,
    *,
    mesh: Mesh,
    **options: Any,
) -> TrainState:
    """``init_state`` on all devices of a mesh.

    One program makes all leaves: a leaf made outside of it would stay on one device, which
    Orbax cannot save from several processes.
    """
    init = functools.partial(init_state, model, tx, **options)
    # It runs once, and optimizing it would take longer than that.
    fast = {"xla_backend_optimization_level": 0}
    return jax.jit(init, out_shardings=replicated(mesh), compiler_options=fast)(variables)


def abstract_state(
    model: nn.Module, tx: optax.GradientTransformation, *, mesh: Mesh, **options: Any
) -> TrainState:
    """Shapes, types and shardings of ``create_state`` without its memory."""
    shapes = jax.eval_shape(functools.partial(init_state, model, tx, **options))
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )
