"""Saves and restores checkpoints: a state and the config of its run."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from nonlocal_jax._files import PathLike, as_path
from nonlocal_jax.config import differences
from nonlocal_jax.convert import _dataset
from nonlocal_jax.convert._orbax import DIRECTORY
from nonlocal_jax.errors import InputError, first_line, listing
from nonlocal_jax.train.state import TrainState

_KEEP = 3
# Sections and fields of a config that may change when a run is resumed.
_FREE = ("train", "evaluation", "mesh", "recipe", "published", "data.workers", "data.cache")


class Checkpoints:
    """The saved states of a run, in ``WORKDIR/checkpoints/STEP``.

    This is a context manager. On exit it waits for the last save. A state is committed by renaming
    its directory, so an interrupted save leaves no checkpoint. The last three states are kept.
    Sharded states are saved and restored shard by shard.

    Args:
      workdir: Directory of the run.
      config: Config of the experiment.
      fingerprint: Fingerprint of the training data.
      dataset: The classes of the training data, see ``convert.read_dataset``. Each state has a
        copy.
      init: The checkpoint that the run starts from, as the user named it, or None.

    Raises:
      InputError: The dataset is invalid, or has another number of classes than the model.
    """

    def __init__(
        self,
        workdir: PathLike,
        config: ConfigDict,
        fingerprint: str,
        dataset: Mapping[str, Any] | None = None,
        init: PathLike | None = None,
    ):
        if dataset is not None:
            dataset = _dataset.check("the training data", dataset, config.model)
        self.directory = as_path(workdir).absolute() / DIRECTORY
        # JSON converts tuples to lists, as in the config that is read from a checkpoint.
        self._run = {
            "config": json.loads(config.to_json()),
            "dataset_fingerprint": fingerprint,
            "dataset": dataset,
            "init": None if init is None else str(init),
        }
        # Removes interrupted saves. The manager would do so in a thread that outlives its closing.
        if jax.process_index() == 0:
            for partial in ocp.utils.tmp_checkpoints(self.directory):
                as_path(partial.get()).rmtree()
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
        """The step of the last state, or None if there is no state."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Saves a state in the background, unless its step is saved already."""
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
        """Restores the last state, or returns None if there is no state.

        Args:
          target: Shapes, types and shardings of the state, see ``abstract_state``.

        Raises:
          InputError: The states belong to another run, or the last state cannot be read. For
            another run, the message lists the differences.
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
        except Exception as error:  # Orbax raises several types for a damaged checkpoint.
            raise InputError(
                f"cannot read the checkpoint {self.directory / str(step)}: {first_line(error)}; "
                "if it is damaged, move it out of the directory to resume from the one before it"
            ) from error

    def _check_run(self, metadata: Mapping[str, Any]) -> None:
        different = differences(metadata["config"], self._run["config"], _FREE)
        if metadata["dataset_fingerprint"] != self._run["dataset_fingerprint"]:
            different.append("the training data are not those of the checkpoint")
        # Runs of earlier versions do not have it.
        ours, theirs = self._run["init"], metadata.get("init", self._run["init"])
        if ours not in (None, theirs):
            raise InputError(
                f"{self.directory.parent} has checkpoints of a run that started from "
                f"{theirs or 'random parameters'}, not from {ours}; use a new --workdir to start "
                "from it, or leave out --init to resume that run"
            )
        self._run["init"] = theirs
        if different:
            raise InputError(
                f"{self.directory.parent} belongs to another run; use a new --workdir, or undo "
                f"these changes:{listing(different)}"
            )
