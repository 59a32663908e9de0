"""Saves and restores checkpoints: a state and the config of its run."""

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from nonlocal_jax import distributed
from nonlocal_jax._files import PathLike, absolute_path, as_path, bucket_errors, is_bucket
from nonlocal_jax._progress import say
from nonlocal_jax.config import differences
from nonlocal_jax.convert import _checksums, _dataset
from nonlocal_jax.convert._orbax import DIRECTORY, finished_steps, last_intact_step
from nonlocal_jax.errors import InputError, disk_reason, first_line, is_out_of_memory, listing
from nonlocal_jax.train.state import TrainState

_KEEP = 3
# Seconds that a save may take. Orbax measures them with the system clock. When the clock is set
# forward by more, for example after a start without a network, the save fails.
_TIMEOUT = 100 * 365 * 24 * 3600
# Sections and fields of a config that may change when a run is resumed.
_FREE = ("train", "evaluation", "mesh", "recipe", "published", "data.workers", "data.cache")


class _WithChecksums:
    """The directory of an unfinished save. It gets checksums before it is committed."""

    async def finalize(self) -> None:
        _checksums.write(self.get())
        await super().finalize()
        # Only now a run that is killed resumes from it.
        say(f"saved step {self.get_final().name}")


class _Renamed(_WithChecksums, ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A save that is committed by renaming its directory."""


class _Marked(_WithChecksums, ocp.path.atomicity.CommitFileTemporaryPath):
    """A save that is committed by an object of its own. Buckets cannot rename directories."""


class Checkpoints:
    """The saved states of a run, in ``WORKDIR/checkpoints/STEP``.

    This is a context manager. On exit it waits for the last save. If that fails after another
    error, it is only a warning. A state is committed by renaming its directory, or in a bucket by
    an object ``commit_success.txt``, so an interrupted save leaves no checkpoint. The last three
    states are kept, and the best of those that were evaluated. Sharded states are saved and
    restored shard by shard, also onto another number of devices or processes, and with other
    shardings.

    Each state has checksums of its files, see ``sha256sum --check checkpoints/STEP/SHA256SUMS``. A
    damaged state after the last intact one is renamed to STEP.damaged.

    Of several processes, the first one decides which state is the last one.

    Args:
      workdir: Directory of the run.
      config: Config of the experiment.
      fingerprint: Fingerprint of the training data.
      dataset: The classes of the training data, see ``convert.read_dataset``. Each state has a
        copy.
      init: The checkpoint that the run starts from, or None.

    Raises:
      InputError: The dataset is invalid, or has another number of classes than the model, all
        states are damaged, or ``workdir`` is a saved state.
    """

    def __init__(
        self,
        workdir: PathLike,
        config: ConfigDict,
        fingerprint: str,
        dataset: Mapping[str, Any] | None = None,
        init: PathLike | None = None,
    ):
        workdir = as_path(workdir)
        if _checksums.exist(workdir):
            raise InputError(f"{workdir} is a saved step of a run; use the directory of a run")
        if dataset is not None:
            dataset = _dataset.check("the training data", dataset, config.model)
        self.directory = absolute_path(workdir) / DIRECTORY
        # JSON converts tuples to lists, as in the config that is read from a checkpoint.
        self._run = {
            "config": json.loads(config.to_json()),
            "dataset_fingerprint": fingerprint,
            "dataset": dataset,
            "init": None if init is None else str(absolute_path(init)),
        }
        self._steps: list[int] = distributed.from_first(self._clean)
        # Unknown until the first call of ``save``. Until then no state is removed.
        self._scores: Mapping[int, float] | None = None
        self._has_failed = False  # a save
        options = ocp.AsyncOptions(timeout_secs=_TIMEOUT, create_directories_asynchronously=False)
        items = ocp.CompositeOptions(async_options=options)
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(composite_options=items),
            async_options=options,
            temporary_path_class=_Marked if is_bucket(self.directory) else _Renamed,
        )

    def _clean(self) -> list[int]:
        """Removes interrupted saves, and renames damaged states after the last intact one.

        Returns the steps that remain, in increasing order.
        """
        if not is_bucket(self.directory) and self.directory.is_file():
            raise InputError(f"{self.directory} is a file; move it away")
        with bucket_errors(self.directory):
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
            return [int(path.name) for path in finished_steps(self.directory)]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error in one of several processes, the others may never finish the save.
        if kind is not None and jax.process_count() > 1:
            return
        was_reported = self._has_failed
        try:
            with self._saving():
                self._checkpointer.close()
                if kind is None:
                    self._remove_old()
        except Exception as error:
            if kind is None:
                raise
            # The first error passes. It may be that of the save itself.
            if not was_reported:
                logging.warning("the last save failed too: %s", error)

    @property
    def latest_step(self) -> int | None:
        """The step of the last state, or None if there is no state."""
        return self._steps[-1] if self._steps else None

    def check(self) -> None:
        """Checks that the save in the background has not failed.

        Raises:
          InputError: It has failed, for example because the disk is full.
        """
        with self._saving():
            self._checkpointer.check_for_errors()

    def save(self, state: TrainState, scores: Mapping[int, float] | None = None) -> None:
        """Saves a state in the background, unless its step is saved already or is 0.

        Step 0 follows from the config and ``init``.

        Args:
          state: The state.
          scores: The headline metric of the steps that were evaluated. The highest is the best.

        Raises:
          InputError: This state or the one before cannot be saved, for example because the disk is
            full.
        """
        step = int(state.step)
        self._scores = scores or {}
        if step in (0, self.latest_step):
            return
        args = ocp.args.Composite(
            variables=ocp.args.StandardSave(state.variables),
            progress=ocp.args.StandardSave(state.progress),
            metadata=ocp.args.JsonSave({"step": step, "dtype": _dtype(state), **self._run}),
        )
        with self._saving():
            self._checkpointer.wait_until_finished()
            self._remove_old()
            self._checkpointer.save(self.directory / str(step), args=args)
        self._steps.append(step)

    def _remove_old(self) -> None:
        """Removes all states but the last ones and the best one. No save is in progress."""
        if self._scores is None:
            return
        scored = [step for step in self._steps if step in self._scores]
        best = max(scored, key=self._scores.__getitem__, default=None)
        if old := [step for step in self._steps[:-_KEEP] if step != best]:
            self._steps = [step for step in self._steps if step not in old]
            # All processes raise its errors, or some would wait for the others.
            distributed.from_first(lambda: self._remove_steps(old))

    def _remove_steps(self, steps: Sequence[int]) -> None:
        with self._saving():
            for step in steps:
                _remove(self.directory / str(step))

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax raises several types if the disk is full.
            self._has_failed = True
            if isinstance(error, InputError):
                raise
            reason = disk_reason(error)
            if reason is None and is_bucket(self.directory):
                reason = f"{type(error).__name__}: {first_line(error)}"
            if reason is None:
                raise
            raise InputError(
                f"cannot save a checkpoint to {self.directory}: {reason}; the checkpoints before "
                "it are unchanged; check the free disk space and the permissions, and run the same "
                "command again to resume"
            ) from error

    def restore(self, target: TrainState) -> TrainState | None:
        """Restores the last state, or returns None if there is no state. Waits for the last save.

        Args:
          target: Shapes, types and shardings of the state, see ``abstract_state``.

        Raises:
          InputError: The states belong to another run, or the last state cannot be read. For
            another run, the message lists the differences.
        """
        with self._saving():
            self._checkpointer.wait_until_finished()
        step = self.latest_step
        if step is None:
            return None
        made_by = self._read(step, ocp.args.Composite(metadata=ocp.args.JsonRestore()))
        self._check_run(made_by.metadata, _dtype(target))
        args = ocp.args.Composite(
            variables=ocp.args.StandardRestore(target.variables),
            progress=ocp.args.StandardRestore(target.progress),
        )
        items = self._read(step, args)
        return TrainState.join(items.variables, items.progress)

    def _read(self, step: int, args: ocp.args.Composite) -> Any:
        path = self.directory / str(step)
        try:
            return self._checkpointer.restore(path, args=args)
        except Exception as error:  # Orbax raises several types for a damaged checkpoint.
            if is_out_of_memory(error):
                raise
            reason = disk_reason(error) or (
                "it is damaged, or from another version of Orbax "
                f"({type(error).__name__}: {first_line(error)})"
            )
            raise InputError(
                f"cannot read the checkpoint {path}: {reason}; move it out "
                "of the directory to resume from the one before it"
            ) from error

    def _check_run(self, metadata: Mapping[str, Any], dtype: str) -> None:
        configs = metadata["config"], self._run["config"]
        different = differences(*configs, _FREE)
        theirs, ours = (config["train"].get("ema") for config in configs)
        if theirs != ours:
            different.append(f"train.ema is {theirs} in the checkpoint, {ours} in the config")
        if metadata["dataset_fingerprint"] != self._run["dataset_fingerprint"]:
            different.append("the training data are not those of the checkpoint")
        # Runs of earlier versions do not have the type, nor "init".
        if (saved := metadata.get("dtype", dtype)) != dtype:
            different.append(f"dtype is {saved} in the checkpoint, {dtype} in this call")
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


def _dtype(state: TrainState) -> str:
    """Returns the type of the parameters and statistics."""
    return str(jax.tree.leaves(state.variables)[0].dtype)


def _remove(step: epath.Path) -> None:
    """Removes a state. If this is interrupted, the rest is that of an interrupted save."""
    if not step.exists():
        return
    if is_bucket(step):
        (step / ocp.path.atomicity.COMMIT_SUCCESS_FILE).unlink(missing_ok=True)
    else:
        step = step.rename(f"{step}{ocp.utils.TMP_DIR_SUFFIX}")
    step.rmtree()
