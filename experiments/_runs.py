"""Reads the work directories of training runs."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from nonlocal_jax.errors import InputError

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
    import orbax.checkpoint as ocp

    if not (workdir / CONFIG).exists():
        return None
    config = read_json(workdir / CONFIG)
    if type(config.get("steps")) is not int:
        raise InputError(f"{workdir / CONFIG} has no number of steps; it is not from `train`")
    evaluations = [r for r in _records(workdir / RECORDS) if any(k.startswith("val/") for k in r)]
    steps = [
        int(path.name)
        for path in (workdir / "checkpoints").glob("*")
        if path.name.isdecimal() and ocp.utils.is_checkpoint_finalized(path)
    ]
    return Run(config, max(steps, default=0), evaluations[-1] if evaluations else {})


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


def _records(path: epath.Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a log, without lines that a killed process left unfinished."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and type(record.get("step")) is int:
            yield record
