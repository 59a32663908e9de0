"""Tasks: an instance of ``Task`` for each kind of problem. ``config.task`` selects one.

To add a task, write a module with an instance of ``Task`` and add the instance to ``TASKS``. Other
projects add a task with ``nonlocal_jax.tasks.TASKS["name"] = Task(...)``.
"""

from ml_collections import ConfigDict

from nonlocal_jax.config import check
from nonlocal_jax.errors import InputError
from nonlocal_jax.tasks import segmentation
from nonlocal_jax.tasks.task import Task

__all__ = ["TASKS", "Task", "get_task"]

TASKS: dict[str, Task] = {"segmentation": segmentation.TASK}


def get_task(config: ConfigDict) -> Task:
    """Returns the task of an experiment, after checking every field of the config.

    Raises:
      InputError: ``config.task`` is not in ``TASKS``, or a field is unknown, missing or invalid.
    """
    name = config.get("task")
    if name not in TASKS:
        raise InputError(f"task is {name!r}; use one of {', '.join(TASKS)}")
    check(config, TASKS[name].leaves)
    return TASKS[name]
