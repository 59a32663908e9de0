"""Builds the parts of an experiment from its config."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict

from nonlocal_jax.errors import InputError
from nonlocal_jax.models import create_model
from nonlocal_jax.sharding import Shardings, check_batch_size
from nonlocal_jax.tasks import Task, get_task
from nonlocal_jax.train.optimizer import create_optimizer


class Experiment(NamedTuple):
    """The parts of an experiment that the state, the step and the loop share.

    Attributes:
      config: The config.
      task: The task.
      model: The network.
      tx: The optimizer, an Optax gradient transformation.
      schedule: The learning rate as a function of the number of updates.
    """

    config: ConfigDict
    task: Task
    model: nn.Module
    tx: optax.GradientTransformation
    schedule: optax.Schedule

    @property
    def batch_size(self) -> int:
        """The number of examples in a global batch."""
        return jax.tree.leaves(self.task.batch(self.config))[0].shape[0]

    def check_batch(self, shardings: Shardings) -> None:
        """Requires that a global batch can be split over devices, micro-batches and norm groups.

        Without ``train.accumulate``, a batch that is smaller than a group is one group.

        Raises:
          InputError: The batch size is not a multiple of the parts or of the groups, or
            ``shardings`` is something else.
        """
        size, model = self.batch_size, self.config.model
        accumulate = self.config.train.get("accumulate", 1)
        check_batch_size(size, shardings, accumulate)
        norms = {model.get("norm", "batch_norm")}
        if model.get("block", "none") != "none":
            norms.add(model.get("block_norm", "batch_norm"))
        group, micro = model.get("norm_group_size"), size // accumulate
        if group is None or "batch_norm" not in norms or micro % group == 0:
            return
        if accumulate > 1 or micro > group:
            raise InputError(
                f"data.batch_size={size} and train.accumulate={accumulate} give batches of "
                f"{micro}, which is not a multiple of model.norm_group_size={group}; use a "
                f"multiple of {accumulate * group} for data.batch_size, or change one of the other "
                "two"
            )

    def example_inputs(self) -> Any:
        """Returns the shapes and types of the model's inputs for a batch of one example."""
        one = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype),
            self.task.batch(self.config),
        )
        return jax.eval_shape(lambda batch: self.task.inputs(batch, self.config), one)


def create_experiment(config: ConfigDict) -> Experiment:
    """Checks a config and builds its model and optimizer.

    Raises:
      InputError: A field of the config is unknown, missing or invalid.
    """
    task = get_task(config)
    model = create_model(config.model, remat=config.train.get("remat", "none"))
    return Experiment(config, task, model, *create_optimizer(config))
