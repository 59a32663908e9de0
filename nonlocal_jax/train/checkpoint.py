"""Saves and restores checkpoints: a state and the config of its run."""

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from nonlocal_jax._files import PathLike, as_path
from nonlocal_jax._progress import say
from nonlocal_jax.config import differences
from nonlocal_jax.convert import _checksums, _dataset
from nonlocal_jax.convert._orbax import DIRECTORY, last_intact_step
from nonlocal_jax.errors import InputError, disk_reason, first_line, is_out_of_memory, listing
from nonlocal_jax.train.state import TrainState

_KEEP = 3
# Seconds that a save may take. Orbax measures them with the system clock. When the clock is set
# forward by more, for example after a start without a network, the save fails.
_TIMEOUT = 100 * 365 * 24 * 3600
# Sections and fields of a config that may change when a run is resumed.
_FREE = ("train", "evaluation", "mesh", "recipe", "published", "data.workers", "data.cache")


class _WithChecksums(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """The directory of an unfinished save. It gets checksums before it is renamed.

    Orbax also uses this class for the subdirectories.
    """

    async def finalize(self) -> None:
        is_step = self.get_final().parent.name == DIRECTORY
        if is_step:
            _checksums.write(self.get())
        await super().finalize()
        if is_step:
            # Only now a run that is killed resumes from it.
            say(f"saved step {self.get_final().name}")


class Checkpoints:
    """The saved states of a run, in ``WORKDIR/checkpoints/STEP``.

    This is a context manager. On exit it waits for the last save. A state is committed by renaming
    its directory, so an interrupted save leaves no checkpoint. The last three states are kept.
    Sharded states are saved and restored shard by shard.

    Each state has checksums of its files, see ``sha256sum --check checkpoints/STEP/SHA256SUMS``. A
    damaged state after the last intact one is renamed to STEP.damaged.

    Args:
      workdir: Directory of the run.
      config: Config of the experiment.
      fingerprint: Fingerprint of the training data.
      dataset: The classes of the training data, see ``convert.read_dataset``. Each state has a
        copy.
      init: The checkpoint that the run starts from, or None.

    Raises:
      InputError: The dataset is invalid, or has another number of classes than the model, or all
        states are damaged.
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
            "init": None if init is None else str(as_path(init).absolute()),
        }
        if jax.process_index() == 0:
            self._clean()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("clean the checkpoints")
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=("variables", "progress", "metadata"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(_KEEP),
                temporary_path_class=_WithChecksums,
                async_options=ocp.AsyncOptions(
                    timeout_secs=_TIMEOUT, create_directories_asynchronously=False
                ),
            ),
        )

    def _clean(self) -> None:
        """Removes interrupted saves, and renames damaged states after the last intact one."""
        # The manager would remove them in a thread that outlives its closing.
        for partial in ocp.utils.tmp_checkpoints(self.directory):
            as_path(partial.get()).rmtree()
        step, damaged = last_intact_step(self.directory)
        for path, damage in damaged.items():
            names = (f"{path.name}.damaged{suffix or ''}" for suffix in itertools.count())
            aside = next(p for name in names if not (p := path.with_name(name)).exists())
            path.rename(aside)
            logging.warning(
                "the checkpoint %s is damaged (%s); it is now %s, and the run goes on from %s",
                *(path, damage, aside.name, step.name),
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None and jax.process_count() > 1:
            return  # the last save may wait for the other processes
        with self._saving():
            self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the last state, or None if there is no state."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Saves a state in the background, unless its step is saved already.

        Raises:
          InputError: This state or the one before cannot be saved, because the disk is full.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        args = ocp.args.Composite(
            variables=ocp.args.StandardSave(state.variables),
            progress=ocp.args.StandardSave(state.progress),
            metadata=ocp.args.JsonSave({"step": step, **self._run}),
        )
        with self._saving():
            self._manager.save(step, args=args)

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax raises several types if the disk is full.
            reason = disk_reason(error)
            if reason is None:
                raise
            raise InputError(
                f"cannot save a checkpoint to {self.directory}: {reason}; the checkpoints before "
                "it are unchanged; check the free disk space, and run the same command again to "
                "resume"
            ) from error

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
        args = ocp.args.Composite(
            variables=ocp.args.StandardRestore(target.variables),
            progress=ocp.args.StandardRestore(target.progress),
        )
        items = self._read(step, args)
        return TrainState.join(items.variables, items.progress)

    def _read(self, step: int, args: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:  # Orbax raises several types for a damaged checkpoint.
            if is_out_of_memory(error):
                raise
            reason = disk_reason(error) or (
                "it is damaged, or from another version of Orbax "
                f"({type(error).__name__}: {first_line(error)})"
            )
            raise InputError(
                f"cannot read the checkpoint {self.directory / str(step)}: {reason}; move it out "
                "of the directory to resume from the one before it"
            ) from error

    def _check_run(self, metadata: Mapping[str, Any]) -> None:
        configs = metadata["config"], self._run["config"]
        different = differences(*configs, _FREE)
        theirs, ours = (config["train"].get("ema") for config in configs)
        if theirs != ours:
            different.append(f"train.ema is {theirs} in the checkpoint, {ours} in the config")
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
