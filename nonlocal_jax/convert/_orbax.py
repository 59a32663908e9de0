"""Reads the variables of a model from the work directory of a training run.

The functions import Orbax, so that reading files does not require it.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from nonlocal_jax.errors import InputError, first_line

# ``train.Checkpoints`` writes checkpoints/STEP/{variables,metadata} to the work directory.
DIRECTORY = "checkpoints"


def read(path: epath.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads the variables by path, in the type they were saved in, and the model config.

    Args:
      path: A work directory or the directory of one step. From a work directory, the last finished
        step is read.

    Raises:
      InputError: There is no finished step, or it cannot be read.
    """
    import orbax.checkpoint as ocp

    with _opened(path) as directory, contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
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
    with _opened(path) as directory:
        return _metadata(directory)


def _metadata(directory: epath.Path) -> tuple[dict[str, Any], Any]:
    metadata = json.loads((directory / "metadata" / "metadata").read_text())
    return dict(metadata["config"]["model"]), metadata.get("dataset")


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[epath.Path]:
    """Yields the directory of a step. Errors of reading it become an ``InputError``."""
    directory = _step_directory(path.absolute())
    try:
        yield directory
    except Exception as error:  # a damaged checkpoint raises one of several types
        raise InputError(
            f"cannot read the checkpoint {directory}: {first_line(error)}; use another step"
        ) from error


def _step_directory(path: epath.Path) -> epath.Path:
    import orbax.checkpoint as ocp

    steps = [path]
    if not (path / "variables").is_dir():
        numbered = [p for p in (path / DIRECTORY).glob("*") if p.name.isdigit()]
        steps = sorted(numbered, key=lambda p: int(p.name), reverse=True)
    for step in steps:
        if (step / "variables").is_dir() and ocp.utils.is_checkpoint_finalized(step):
            return step
    raise InputError(
        f"there is no checkpoint in the directory {path}; use a work directory of "
        f"experiments.train or one step in it, {DIRECTORY}/STEP"
    )
