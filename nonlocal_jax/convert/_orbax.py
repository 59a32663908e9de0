"""Reads the variables of a model from the work directory of a training run.

The functions import Orbax, so that reading files does not require it.
"""

import contextlib
import json
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from flax.traverse_util import flatten_dict

from nonlocal_jax._files import absolute_path, bucket_errors
from nonlocal_jax.convert import _checksums
from nonlocal_jax.errors import InputError, disk_reason, first_line, is_out_of_memory, listing

# ``train.Checkpoints`` writes checkpoints/STEP/{variables,metadata} to the work directory.
DIRECTORY = "checkpoints"

# What ``read`` reads of a step.
_ITEMS = ("variables", "metadata")


def read(path: epath.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads the variables by path, in the type they were saved in, and the model config.

    Args:
      path: A work directory or the directory of one step. From a work directory, the last finished
        step is read that is not damaged.

    Raises:
      InputError: There is no finished step, or it is damaged or cannot be read.
    """
    import orbax.checkpoint as ocp

    with (
        _opened(path, _ITEMS) as directory,
        contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler,
    ):
        config, _ = _metadata(directory)
        saved = handler.metadata(directory / "variables").tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        variables = handler.restore(
            directory / "variables", args=ocp.args.PyTreeRestore(restore_args=as_numpy)
        )
    return flatten_dict(variables, sep="/"), config


def read_metadata(path: epath.Path) -> tuple[dict[str, Any], Any]:
    """Reads the model config, and the value of the dataset or None.

    Raises:
      InputError: There is no finished step, or its metadata cannot be read.
    """
    with _opened(path, ("metadata",)) as directory:
        return _metadata(directory)


def _metadata(directory: epath.Path) -> tuple[dict[str, Any], Any]:
    metadata = json.loads((directory / "metadata" / "metadata").read_text())
    return dict(metadata["config"]["model"]), metadata.get("dataset")


@contextlib.contextmanager
def _opened(path: epath.Path, items: Collection[str]) -> Iterator[epath.Path]:
    """Yields the directory of a step whose items are intact.

    Errors of reading it become an ``InputError``.
    """
    with bucket_errors(path):
        directory = step_directory(absolute_path(path), items)
    try:
        yield directory
    except Exception as error:  # a damaged checkpoint raises one of several types
        if is_out_of_memory(error):
            raise
        reason = disk_reason(error) or (
            "it is damaged, or from another version of Orbax "
            f"({type(error).__name__}: {first_line(error)})"
        )
        message = f"cannot read the checkpoint {directory}: {reason}; use another step"
        raise InputError(message) from error


def step_directory(path: epath.Path, items: Collection[str] = _ITEMS) -> epath.Path:
    """Returns the directory of a saved step, or of the last one in a work directory.

    Args:
      path: A work directory or the directory of one step.
      items: What must be intact. Default: what ``read`` reads.

    Raises:
      InputError: See ``read``.
    """
    if _is_step(path):
        if damage := _checksums.find_damage(path, items):
            raise InputError(f"the checkpoint {path} is damaged ({damage}); use another step")
        return path
    step, damaged = last_intact_step(path / DIRECTORY, items)
    if step is None:
        raise InputError(
            f"there is no checkpoint in the directory {path}; use a work directory of "
            f"experiments.train or one step in it, {DIRECTORY}/STEP"
        )
    for other, damage in damaged.items():
        logging.warning("the checkpoint %s is damaged (%s); using %s", other, damage, step.name)
    return step


def _is_step(path: epath.Path) -> bool:
    import orbax.checkpoint as ocp

    has_contents = (path / "variables").is_dir() or _checksums.exist(path)
    return has_contents and ocp.utils.is_checkpoint_finalized(path)


def finished_steps(directory: epath.Path) -> list[epath.Path]:
    """Returns the steps in a directory "checkpoints", in increasing order."""
    steps = [step for step in directory.glob("*") if step.name.isdecimal() and _is_step(step)]
    return sorted(steps, key=lambda step: int(step.name))


def last_intact_step(
    directory: epath.Path, items: Collection[str] | None = None
) -> tuple[epath.Path | None, dict[epath.Path, str]]:
    """Returns the last step that is not damaged, or None, and the damage of those after it.

    Args:
      directory: The directory "checkpoints" of a work directory.
      items: The items of a step that must be intact, or None for all.

    Raises:
      InputError: All steps are damaged, or one cannot be read for now.
    """
    damaged = {}
    for step in reversed(finished_steps(directory)):
        damage = _checksums.find_damage(step, items)
        if damage is None:
            return step, damaged
        damaged[step] = damage
    if damaged:
        lines = (f"{step}: {damage}" for step, damage in damaged.items())
        raise InputError(f"all checkpoints are damaged; use another --workdir:{listing([*lines])}")
    return None, damaged
