"""Reads the variables of a model from the work directory of a training run.

The functions import Orbax, so that reading files does not require it.
"""

import json
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

    directory = _step_directory(path.absolute())
    handler = ocp.PyTreeCheckpointHandler()
    try:
        metadata = json.loads((directory / "metadata" / "metadata").read_text())
        config = dict(metadata["config"]["model"])
        saved = handler.metadata(directory / "variables").tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        variables = handler.restore(
            directory / "variables", args=ocp.args.PyTreeRestore(restore_args=as_numpy)
        )
    except Exception as error:  # a damaged checkpoint raises one of several types
        raise InputError(
            f"cannot read the checkpoint {directory}: {first_line(error)}; use another step"
        ) from error
    finally:
        handler.close()
    return flatten_dict(variables, sep="/"), config


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
