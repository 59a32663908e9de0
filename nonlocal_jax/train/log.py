"""What a run tells: lines on the console, ``metrics.jsonl`` and ``curves.png``."""

import json
import math
import pathlib
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
from tqdm import tqdm

from nonlocal_jax._files import write_file
from nonlocal_jax.errors import InputError

# Metrics are read this many steps late: the devices always have steps waiting, and a non-finite
# loss is seen at once.
_LAG = 2


class NonFiniteError(InputError):
    """The loss, its gradient or the parameters are not finite; retrying will not help."""


def _read(path: pathlib.Path, last_step: int) -> list[dict[str, Any]]:
    """The records up to a step; a last line that a kill cut short is none."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return [record for record in records if record["step"] <= last_step]


class RunLog:
    """Records of a run, one JSON object a line: metrics of a training step, or of an evaluation.

    Only process 0 writes. Records beyond ``step``, left by a run that was killed after its last
    checkpoint, are dropped: they will come again.

    Args:
      workdir: of the run.
      step: updates that the restored state has seen.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        self._workdir = workdir
        self._path = workdir / "metrics.jsonl"
        self._writes = jax.process_index() == 0
        self.records = _read(self._path, step)
        if self._writes:
            write_file(self._path, "".join(json.dumps(r) + "\n" for r in self.records))

    def add(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))
        if self._writes:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def add_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self.add({"step": step, **metrics})
        values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.say(f"step {step} evaluated  {values}")

    def say(self, text: str) -> None:
        """Prints a line, on process 0."""
        if self._writes:
            print(text, flush=True)

    def was_evaluated(self, step: int) -> bool:
        return any("miou" in record and record["step"] == step for record in self.records)

    def latest(self) -> dict[str, Any]:
        """The last value of every metric."""
        return {key: value for record in self.records for key, value in record.items()}

    def draw(self) -> None:
        """Writes ``curves.png``."""
        if self._writes and self.records:
            from nonlocal_jax.visualize.curves import curves_png  # imports matplotlib

            write_file(self._workdir / "curves.png", curves_png(self.records))


class Monitor:
    """Reads the metrics of every step, a few steps late, checks them and logs some.

    Args:
      log: where to.
      steps: of the whole run.
      log_every: steps between two records.
      batch_size: images in a step.
    """

    def __init__(self, log: RunLog, *, steps: int, log_every: int, batch_size: int):
        self._log = log
        self._steps = steps
        self._log_every = log_every
        self._batch_size = batch_size
        self._pending: deque[tuple[int, Mapping[str, jax.Array]]] = deque()
        self._mark: tuple[int, float] | None = None
        self._seconds_per_step: float | None = None

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of an update, the first of which is step 1.

        Raises:
          NonFiniteError: naming the first step that went wrong.
        """
        self._pending.append((step, metrics))
        while len(self._pending) > _LAG:
            self._take(*self._pending.popleft())

    def flush(self) -> None:
        """Waits for every step so far; the clock stops until the next one.

        Raises:
          NonFiniteError: see ``add``.
        """
        while self._pending:
            self._take(*self._pending.popleft())
        self._mark = None

    def _take(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        values = {key: float(value) for key, value in jax.device_get(metrics).items()}
        for key in ("loss", "grad_norm", "param_norm"):
            if not math.isfinite(values[key]):
                raise NonFiniteError(
                    f"{key} is {values[key]} at step {step}. The last good checkpoint is kept, but "
                    "going on from it would end here again: check the data, or take a lower "
                    "optimizer.learning_rate in a new --workdir"
                )
        now = time.monotonic()
        if step % self._log_every == 0 or step == self._steps:
            if self._mark is not None:
                first, then = self._mark
                self._seconds_per_step = (now - then) / (step - first)
                self._mark = (step, now)
            self._report(step, values)
        # Compiling, checkpoints and evaluations are not counted: the clock starts behind them.
        if self._mark is None:
            self._mark = (step, now)

    def _report(self, step: int, values: dict[str, float]) -> None:
        line = (
            f"step {step}/{self._steps}  loss {values['loss']:.4f}  "
            f"accuracy {values['accuracy']:.4f}  lr {values['learning_rate']:.2e}"
        )
        if self._seconds_per_step is not None:
            rate = self._batch_size / self._seconds_per_step
            values["images_per_second"] = round(rate, 3)
            left = tqdm.format_interval((self._steps - step) * self._seconds_per_step)
            line += f"  {rate:.1f} images/s  {left} left"
        self._log.add({"step": step, **values})
        self._log.say(line)
