"""Checkpoints: ``workdir/checkpoints/STEP`` with the state and a JSON of what made it."""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from nonlocal_jax._files import PathLike
from nonlocal_jax.config import differences
from nonlocal_jax.convert._orbax import DIRECTORY
from nonlocal_jax.errors import InputError, first_line, listing
from nonlocal_jax.train.state import TrainState

_KEEP = 3
# Sections of a config that leave the parameters alone: they may change when a run is resumed.
_FREE_SECTIONS = ("train", "evaluation", "mesh", "published")


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
        self.directory = pathlib.Path(workdir).absolute() / DIRECTORY
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
        different = differences(metadata["config"], self._run["config"], _FREE_SECTIONS)
        if metadata["dataset_fingerprint"] != self._run["dataset_fingerprint"]:
            different.append("the training data are not those of the checkpoint")
        if different:
            raise InputError(
                f"{self.directory.parent} belongs to another run:{listing(different)}\n"
                "use its config and data, or another --workdir"
            )
