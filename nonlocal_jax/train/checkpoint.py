"""Checkpoints: ``workdir/checkpoints/STEP`` with the state and a JSON of what made it."""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from ml_collections import ConfigDict

from nonlocal_jax import convert
from nonlocal_jax._files import PathLike
from nonlocal_jax.convert import _fit as fit
from nonlocal_jax.convert import names
from nonlocal_jax.errors import InputError, first_line
from nonlocal_jax.train.state import TrainState

_DIRECTORY = "checkpoints"
_KEEP = 3
# Sections of a config that leave the parameters alone: they may change when a run is resumed.
_FREE_SECTIONS = ("train", "evaluation", "mesh", "published")


def _differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    saved, current = (traverse_util.flatten_dict(dict(d), sep=".") for d in (saved, current))
    return [
        f"{key} is {saved.get(key)!r} there and {current.get(key)!r} here"
        for key in sorted({*saved, *current})
        if saved.get(key) != current.get(key)
    ]


class Checkpoints:
    """The saved states of one run; a context manager that waits for saves on its way out.

    A state is committed by renaming its directory, so a save that was cut short never counts. The
    last few states are kept.

    Args:
      workdir: of the run.
      config: of the experiment.
      fingerprint: of the training data.
    """

    def __init__(self, workdir: PathLike, config: ConfigDict, fingerprint: str):
        self.directory = pathlib.Path(workdir).absolute() / _DIRECTORY
        # Through JSON, as it will be read again: tuples become lists.
        self._run = {"config": json.loads(config.to_json()), "dataset_fingerprint": fingerprint}
        # What saves that were cut short left; the manager's own thread for it outlives its closing.
        if jax.process_index() == 0:
            for partial in ocp.utils.tmp_checkpoints(self.directory):
                shutil.rmtree(partial.get())
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=("variables", "progress", "metadata"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(_KEEP),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the last state, or None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Saves a state unless its step is saved already; writing goes on in the background."""
        step = int(state.step)
        if step == self.latest_step:
            return
        progress = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(state.variables),
                progress=ocp.args.StandardSave(progress),
                metadata=ocp.args.JsonSave({"step": step, **self._run}),
            ),
        )

    def restore(self, target: TrainState) -> TrainState | None:
        """The last state, or None if there is none.

        Args:
          target: the abstract state, see ``abstract_state``.

        Raises:
          InputError: the states are those of another run; the message lists the differences.
        """
        step = self.latest_step
        if step is None:
            return None
        made_by = self._read(step, ocp.args.Composite(metadata=ocp.args.JsonRestore()))
        self._check_run(made_by.metadata)
        progress = {"step": target.step, "opt_state": target.opt_state, "rng": target.rng}
        args = ocp.args.Composite(
            variables=ocp.args.StandardRestore(target.variables),
            progress=ocp.args.StandardRestore(progress),
        )
        items = self._read(step, args)
        return TrainState(**items.variables, **items.progress)

    def _read(self, step: int, args: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:  # a damaged checkpoint surfaces as any of several types
            raise InputError(
                f"cannot read the checkpoint {self.directory / str(step)}: {first_line(error)}. "
                "If it is damaged, move it away and the run goes on from the one before"
            ) from error

    def _check_run(self, metadata: Mapping[str, Any]) -> None:
        def fixed(run):
            config = {k: v for k, v in run["config"].items() if k not in _FREE_SECTIONS}
            return {**config, "dataset_fingerprint": run["dataset_fingerprint"]}

        if differences := _differences(fixed(metadata), fixed(self._run)):
            raise InputError(
                f"{self.directory.parent} holds another run; give a new --workdir, or mend:"
                f"{fit.listing(differences)}"
            )


def _step_directory(path: pathlib.Path) -> pathlib.Path:
    """The directory of one saved step: ``path`` itself, or the last one in a work directory."""
    if not path.exists():
        raise InputError(f"no checkpoint at {path}: no such file or directory")
    if not path.is_dir():
        raise InputError(f"{path} is neither a directory of a training nor a .safetensors file")
    steps = [path]
    if not (path / "variables").is_dir():
        numbered = [p for p in (path / _DIRECTORY).glob("*") if p.name.isdigit()]
        steps = sorted(numbered, key=lambda p: int(p.name), reverse=True)
    for step in steps:
        if (step / "variables").is_dir() and ocp.utils.is_checkpoint_finalized(step):
            return step
    raise InputError(
        f"no checkpoint in {path}: give a work directory of experiments.train, one saved step "
        f"({_DIRECTORY}/STEP) in it, or a .safetensors file"
    )


def load_variables(path: PathLike, model_config: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a checkpoint, whichever form it has.

    Args:
      path: a work directory (its last state counts), one saved step in it, or a ``.safetensors``.
      model_config: the flat mapping that ``create_model`` takes.

    Returns:
      ``{"params", "batch_stats"}``, nested dicts of numpy arrays.

    Raises:
      InputError: there is no checkpoint, it cannot be read, or it does not fit the model.
    """
    path = pathlib.Path(path)
    if path.suffix == ".safetensors":
        return convert.load(path, model_config)
    directory = _step_directory(path.absolute())
    handler = ocp.PyTreeCheckpointHandler()
    try:
        metadata = json.loads((directory / "metadata" / "metadata").read_text())
        saved_config = metadata["config"]["model"]
        shapes = handler.metadata(directory / "variables").tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        variables = handler.restore(
            directory / "variables", args=ocp.args.PyTreeRestore(restore_args=as_numpy)
        )
    except Exception as error:  # a damaged checkpoint surfaces as any of several types
        raise InputError(f"the checkpoint {directory} is damaged: {first_line(error)}") from error
    finally:
        handler.close()
    arrays = traverse_util.flatten_dict(variables, sep="/")
    wanted = {leaf.path: leaf.shape for leaf in names.leaves(model_config)}
    fit.check_model(path, arrays, wanted, saved_config, model_config)
    return variables
