"""The log of a run: lines on the console, ``metrics.jsonl`` and ``curves.png``."""

import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging
from etils import epath

from nonlocal_jax._files import (
    PathLike,
    append_line,
    as_path,
    check_is_file,
    is_bucket,
    write_file,
)
from nonlocal_jax._progress import duration, say
from nonlocal_jax.distributed import from_first
from nonlocal_jax.errors import InputError
from nonlocal_jax.train._tensorboard import Scalars

# The metrics of a step are read after this many further steps have been dispatched. The devices
# always have work, and a loss that is not finite is still detected early.
_LAG = 2
# The share of the time spent waiting for data above which there is a warning.
_MAX_DATA_WAIT = 0.1
# Objects in a bucket cannot be appended to. They are written again after this many seconds.
_REWRITE_AFTER = 10.0


class NonFiniteError(InputError):
    """The loss, its gradient or the parameters are not finite. The same config would fail again."""


def read_records(path: epath.Path) -> list[dict[str, Any]]:
    """Reads ``metrics.jsonl``. Skips lines that are no records, with one warning.

    Raises:
      InputError: The path is something else than a file.
    """
    if path.exists() and not is_bucket(path):
        check_is_file(path)
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    records, skipped = [], []
    for number, line in enumerate(lines[:-1], 1):
        record = _parse(line)
        if record is None:
            skipped.append(str(number))
        else:
            records.append(record)
    if skipped:
        logging.warning("skipped what is no record in %s, line %s", path, ", ".join(skipped))
    # A killed process may have written only a part of the last line, without a newline.
    return records


def _parse(line: bytes) -> dict[str, Any] | None:
    """Returns a record, or None if the line is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or nested too deep
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    return record if all(map(_is_number, record.values())) else None


def _is_number(value: Any) -> bool:
    """Returns whether JSON's value is a number that a float can hold. Integers may be longer."""
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


class RunLog:
    """The records of a run, one JSON object per line.

    A record has a "step" and the metrics of a train step ("train/loss", ...) or of an evaluation
    ("val/miou", ...). Only process 0 writes. Records after ``step`` are removed, because a run that
    was killed after its last checkpoint computes those steps again. In a bucket, the last records
    may be missing for some seconds, see ``flush``. With tensorboardX, the records are also in
    ``WORKDIR/tensorboard``, if ``workdir`` is local.

    Args:
      workdir: Directory of the run.
      step: Number of updates of the restored state.
      headline: Name of the metric that ``curves.png`` shows next to the loss.
      check: Called before a file is written. If it raises an error, the file is unchanged.
    """

    def __init__(
        self, workdir: PathLike, step: int, headline: str, check: Callable[[], None] = lambda: None
    ):
        self._workdir = as_path(workdir)
        self._path = self._workdir / "metrics.jsonl"
        self._headline = headline
        self._check = check
        self._writes = jax.process_index() == 0
        self.records = from_first(
            lambda: [record for record in read_records(self._path) if record["step"] <= step]
        )
        self._rewrite()
        # tensorboardX writes to local directories.
        is_local = self._writes and not is_bucket(self._workdir)
        self._scalars = Scalars(self._workdir / "tensorboard", step) if is_local else None

    def add(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
        """Appends a record. The names of its metrics get the prefix "train/" or "val/"."""
        record = {"step": step, **{f"{kind}/{name}": value for name, value in metrics.items()}}
        self.records.append(record)
        if is_bucket(self._path):
            if time.monotonic() - self._written > _REWRITE_AFTER:
                self.flush()
            return
        if self._writes:
            self._check()
            append_line(self._path, json.dumps(record))
        self._in_file = len(self.records)
        if self._scalars is not None:
            self._scalars.add(step, {name: record[name] for name in record if name != "step"})

    def flush(self) -> None:
        """Writes the records that are not in the file yet. Call this before a state is saved."""
        if self._in_file < len(self.records):
            self._rewrite()

    def _rewrite(self) -> None:
        if self._writes:
            self._check()
            write_file(self._path, "".join(json.dumps(r) + "\n" for r in self.records))
        self._in_file, self._written = len(self.records), time.monotonic()

    def add_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self.add(step, "val", metrics)
        self.flush()
        values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.say(f"step {step} evaluated  {values}")

    def say(self, text: str) -> None:
        """Prints a line on process 0."""
        say(text)

    def was_evaluated(self, step: int) -> bool:
        """Returns whether there is a record of an evaluation at this step."""
        return any(
            record["step"] == step and any(name.startswith("val/") for name in record)
            for record in self.records
        )

    def scores(self) -> dict[int, float]:
        """Returns the headline metric of each step that was evaluated."""
        name = f"val/{self._headline}"
        scored = [record for record in self.records if math.isfinite(record.get(name, math.nan))]
        return {record["step"]: record[name] for record in scored}

    def latest(self) -> dict[str, Any]:
        """Returns the last value of every metric."""
        return {key: value for record in self.records for key, value in record.items()}

    def close(self) -> None:
        """Closes the file of TensorBoard."""
        if self._scalars is not None:
            self._scalars.close()

    def draw(self) -> None:
        """Writes ``curves.png``."""
        if self._writes and self.records:
            from nonlocal_jax.visualize.curves import curves_png  # imports matplotlib

            curves = curves_png(self.records, self._headline)
            self._check()
            write_file(self._workdir / "curves.png", curves)


class Monitor:
    """Reads the metrics of every step a few steps later, checks them, and logs some of them.

    Args:
      log: The log to write to.
      steps: Number of steps of the whole run.
      log_every: Number of steps between two records.
      batch_size: Number of examples in a batch.
    """

    def __init__(self, log: RunLog, *, steps: int, log_every: int, batch_size: int):
        self._log = log
        self._steps = steps
        self._log_every = log_every
        self._batch_size = batch_size
        self._pending: deque[tuple[int, Mapping[str, jax.Array], float]] = deque()
        self._mark: tuple[int, float] | None = None
        self._waited = 0.0  # seconds since the mark
        self._warned = False
        self._seconds_per_step: float | None = None
        self._data_wait: float | None = None

    def add(self, step: int, metrics: Mapping[str, jax.Array], waited: float = 0.0) -> None:
        """Adds the metrics of a step. The first step is 1.

        Args:
          step: The number of the step.
          metrics: Its metrics.
          waited: For how many seconds the devices waited for its batch.

        Raises:
          NonFiniteError: A metric is not finite. The message names the first such step.
        """
        self._pending.append((step, metrics, waited))
        while len(self._pending) > _LAG:
            self._take(*self._pending.popleft())

    def flush(self) -> None:
        """Waits for all steps so far, and writes their records.

        The measurement of time pauses until the next step.

        Raises:
          NonFiniteError: See ``add``.
        """
        while self._pending:
            self._take(*self._pending.popleft())
        self._log.flush()
        self._mark = None

    def _take(self, step: int, metrics: Mapping[str, jax.Array], waited: float) -> None:
        values = {key: float(value) for key, value in jax.device_get(metrics).items()}
        for key in ("loss", "grad_norm", "param_norm"):
            if not math.isfinite(values[key]):
                raise NonFiniteError(
                    f"{key} is {values[key]} at step {step}, and resuming from the last checkpoint "
                    "would fail in the same way; check the data, or use a lower "
                    "optimizer.learning_rate in a new --workdir"
                )
        now = time.monotonic()
        self._waited += waited
        if step % self._log_every == 0 or step == self._steps:
            if self._mark is not None:
                first, then = self._mark
                self._seconds_per_step = (now - then) / (step - first)
                self._data_wait = min(self._waited / (now - then), 1.0)
                self._start(step, now)
            self._report(step, values)
        # The clock starts after compilation, checkpoints and evaluations.
        if self._mark is None:
            self._start(step, now)

    def _start(self, step: int, now: float) -> None:
        self._mark = (step, now)
        self._waited = 0.0

    def _report(self, step: int, values: dict[str, float]) -> None:
        hidden = ("loss", "grad_norm", "param_norm")
        shown = ["loss", *(name for name in values if name not in hidden)]  # jit sorts the names
        line = f"step {step}/{self._steps}  " + "  ".join(f"{n} {values[n]:.4g}" for n in shown)
        if self._seconds_per_step is not None:
            rate = self._batch_size / self._seconds_per_step
            values["examples_per_second"] = round(rate, 3)
            values["data_wait"] = round(self._data_wait, 4)
            left = duration((self._steps - step) * self._seconds_per_step)
            line += f"  {rate:.1f} examples/s  {self._data_wait:.0%} waiting for data  {left} left"
        self._log.add(step, "train", values)
        self._log.say(line)
        if (self._data_wait or 0) > _MAX_DATA_WAIT and not self._warned:
            self._warned = True
            self._log.say(
                f"warning: the devices wait for data {self._data_wait:.0%} of the time; set "
                "data.workers to a number of processes, or data.cache to a directory on a fast disk"
            )
