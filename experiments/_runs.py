"""Reads the work directories of training runs."""

import json
from typing import Any, NamedTuple

from etils import epath

from nonlocal_jax.convert._orbax import DIRECTORY, finished_steps
from nonlocal_jax.errors import InputError
from nonlocal_jax.train.log import read_records

CONFIG, RECORDS, METRICS = "config.json", "metrics.jsonl", "metrics.json"


class Run(NamedTuple):
    """A training run.

    Attributes:
      config: All fields of its config.
      step: The last step that is saved, or 0.
      evaluation: The metrics of the last evaluation, such as "val/miou", and its "step". Empty if
        there was none.
    """

    config: dict[str, Any]
    step: int
    evaluation: dict[str, float]

    @property
    def finished(self) -> bool:
        """Whether the last step is saved and evaluated."""
        return self.step == self.config["steps"] == self.evaluation.get("step")


def read_run(workdir: epath.Path) -> Run | None:
    """Reads a work directory. Returns None if no run has started in it.

    Raises:
      InputError: A file cannot be read.
    """
    if not (workdir / CONFIG).exists():
        return None
    config = read_json(workdir / CONFIG)
    if type(config.get("steps")) is not int:
        raise InputError(f"{workdir / CONFIG} has no number of steps; it is not from `train`")
    records = read_records(workdir / RECORDS)
    evaluations = [r for r in records if any(name.startswith("val/") for name in r)]
    steps = finished_steps(workdir / DIRECTORY)
    return Run(config, int(steps[-1].name) if steps else 0, evaluations[-1] if evaluations else {})


def read_json(path: epath.Path) -> dict[str, Any]:
    """Reads an object of JSON.

    Raises:
      InputError: The file cannot be read, or contains something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}; remove it, or write it again") from error
    if not isinstance(value, dict):
        raise InputError(f"cannot read {path}: it is no JSON object; remove it, or write it again")
    return value
