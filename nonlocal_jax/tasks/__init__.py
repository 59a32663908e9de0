"""Tasks: a record for each kind of problem, chosen by ``config.task``.

To add a task, write a module with a ``Task`` and add it to ``TASKS``; a project that uses the
library does the same from outside with ``nonlocal_jax.tasks.TASKS["name"] = Task(...)``.
"""

from ml_collections import ConfigDict

from nonlocal_jax.config import check
from nonlocal_jax.errors import InputError
from nonlocal_jax.tasks import segmentation
from nonlocal_jax.tasks.task import Task

__all__ = ["TASKS", "Task", "get_task"]

TASKS: dict[str, Task] = {"segmentation": segmentation.TASK}


def get_task(config: ConfigDict) -> Task:
    """The task of an experiment. Checks every leaf of the config first.

    Raises:
      InputError: ``config.task`` is not in ``TASKS``, or a leaf is unknown, missing or wrong.
    """
    name = config.get("task")
    if name not in TASKS:
        raise InputError(f"task must be one of {', '.join(TASKS)}; got {name!r}")
    check(config, TASKS[name].leaves)
    return TASKS[name]
