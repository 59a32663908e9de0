"""Tasks: an instance of ``Task`` for each kind of problem. ``config.task`` selects one.

To add a task, write a module with an instance of ``Task`` and add the instance to ``TASKS``. Other
projects add a task with ``nonlocal_jax.tasks.TASKS["name"] = Task(...)``.
"""

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from nonlocal_jax.config import check
from nonlocal_jax.errors import InputError
from nonlocal_jax.tasks import classification, segmentation
from nonlocal_jax.tasks.task import Task

__all__ = ["TASKS", "Task", "get_task", "loss_fn"]

TASKS: dict[str, Task] = {
    "segmentation": segmentation.TASK,
    "classification": classification.TASK,
}


def get_task(config: ConfigDict) -> Task:
    """Returns the task of an experiment, after checking every field of the config.

    Raises:
      InputError: The config is no ``ConfigDict``, ``config.task`` is not in ``TASKS``, a field is
        unknown, missing or invalid, or fields do not fit together.
    """
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"config is of type {type(config).__name__}; use an ml_collections.ConfigDict, such as "
            "ConfigDict(config) of a dict"
        )
    name = config.get("task")
    if not isinstance(name, str) or name not in TASKS:
        raise InputError(f"task is {name!r}; use one of {', '.join(TASKS)}")
    task = TASKS[name]
    check(config, task.leaves)
    if task.check is not None:
        task.check(config)
    return task


def loss_fn(
    outputs: Any, labels: jax.Array, config: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the loss of a task of this library, from its model's outputs with ``train=True``.

    ``config.loss`` of the classification task has the field ``kind``, that of the segmentation task
    has ``auxiliary_weight``. ``tasks.classification.loss_fn`` and ``tasks.segmentation.loss_fn``
    define the losses.

    Args:
      outputs: Logits ``[B, classes]``, or for segmentation the pair of the logits of the decode and
        of the auxiliary head, ``[B, h, w, classes]``.
      labels: For segmentation ``[B, H, W]``. For classification ``[B]`` with ``kind="softmax"``, or
        ``[B, classes]`` with ``kind="sigmoid"``.
      config: ``config.loss`` of an experiment.

    Returns:
      The loss, and a dict of the parts that it is the sum of. They are scalars, at least float32.

    Raises:
      InputError: ``config`` belongs to no task, or the shapes do not match.
    """
    for field, task in (("kind", classification), ("auxiliary_weight", segmentation)):
        if field in config:
            return task.loss_fn(outputs, labels, config)
    raise InputError(
        f"the config of the loss has the fields {', '.join(config) or 'none'}; use config.loss of "
        "an experiment"
    )
