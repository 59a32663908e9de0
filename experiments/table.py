"""Prints the metrics of many runs as one table, beside the published ones.

    python -m experiments.table runs

The command looks in the directories and their subdirectories for metrics.json, which `evaluate`
writes, and for work directories of `train`. It prints a Markdown table in percent: the mean IoU of
segmentation, and the top-1 accuracy or mAP of videos. Runs that differ only in their seed share a
row, with the mean and the standard deviation of their values. Published values are shown where the
data and the protocol are the published ones. Fields in parentheses differ from the experiment's
config. Runs that are unfinished or cannot be read are listed below the table.
"""

import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath
from flax.traverse_util import flatten_dict

from experiments import cli
from experiments._runs import CONFIG, METRICS, Run, read_json, read_run
from nonlocal_jax._files import as_path, is_bucket
from nonlocal_jax.configs import segmentation, video
from nonlocal_jax.errors import InputError

_NAMES = (*segmentation.NAMES, *video.NAMES, *video.ALIASES)
_TITLES = {"miou": "mIoU", "top1": "top-1", "map": "mAP"}
# Fields and sections that do not change what was trained, and the protocol, which has a column.
_FREE = (
    *("name", "seed", "mesh", "evaluation", "recipe", "published", "data.workers", "data.cache"),
    *("train.log_every", "train.checkpoint_every", "train.evaluate_every"),
)


class _Row(NamedTuple):
    """What the values of a row have in common."""

    experiment: str
    protocol: str
    metric: str
    published: float | None
    step: int | None


def _default(name: str) -> dict[str, Any] | None:
    """Returns the config of an experiment as in JSON, or None if there is no such experiment."""
    if name not in _NAMES:
        return None
    module = segmentation if name in segmentation.NAMES else video
    return json.loads(module.get_config(name).to_json())


def _title(name: str, config: Mapping[str, Any] | None) -> str:
    """Returns the name of an experiment, and the fields in which a run differs from it."""
    default = _default(name)
    if config is None or default is None:
        return name
    ours, theirs = flatten_dict(config, sep="."), flatten_dict(default, sep=".")
    changes = [
        f"{field}={ours[field]}"
        for field in sorted(ours)
        if ours[field] != theirs.get(field)
        and not any(f"{field}.".startswith(f"{free}.") for free in _FREE)
    ]
    return f"{name} ({', '.join(changes)})" if changes else name


def _protocol(protocol: Mapping[str, Any]) -> str:
    if "name" in protocol:
        return protocol["name"]
    scales = len(protocol["ratios"])
    text = f"{'slide' if protocol['crop'] else 'whole'}, {scales} scale{'s' * (scales > 1)}"
    return f"{text}, flip" if protocol["flip"] else text


def _published(metrics: Mapping[str, Any], metric: str) -> float | None:
    """Returns the published value of an experiment with the protocol of ``metrics``, or None."""
    config = _default(metrics["experiment"])
    if config is None or (metrics["dataset"], metrics["split"]) != (config["data"]["name"], "val"):
        return None
    protocol, expected = metrics["protocol"], dict(config["evaluation"])
    if metric == "miou":
        if protocol["ratios"] == [1.0] and not protocol["flip"]:
            expected |= {"ratios": [1.0], "flip": False}
        else:
            metric = "miou_ms_flip"
        if expected.pop("mode") == "whole":
            expected |= {"crop": None, "stride": None}
    else:
        expected |= {field: config["data"][field] for field in ("frames", "interval")}
    same = all(protocol.get(field) == value for field, value in expected.items())
    return config["published"].get(metric) if same else None


def _logged(run: Run) -> dict[str, Any]:
    """Returns the last evaluation of a training run, in the form of metrics.json."""
    config = run.config
    evaluation = config["evaluation"]
    if config["task"] == "segmentation":
        slide = evaluation["mode"] == "slide"
        windows = {key: evaluation[key] if slide else None for key in ("crop", "stride")}
        base_size = evaluation["base_size"]
        protocol = {"base_size": base_size, "ratios": [1.0], "flip": False, **windows}
    else:
        protocol = {"name": "1clip"}
    metrics = {
        name.removeprefix("val/").removesuffix("_1clip"): value
        for name, value in run.evaluation.items()
    }
    shared = {"experiment": config["name"], "dataset": config["data"]["name"], "split": "val"}
    return {**metrics, **shared, "protocol": protocol, "step": run.step}


def _directories(directory: epath.Path, seen: set[str]) -> Iterator[epath.Path]:
    """Yields a directory and those below it, except those in ``seen``, to which it adds them."""
    real = str(directory) if is_bucket(directory) else os.path.realpath(directory)
    if real in seen:  # by a symbolic link, or because two arguments overlap
        return
    seen.add(real)
    yield directory
    for path in sorted(directory.iterdir()):
        # The launchers keep compiled programs in a hidden directory.
        if path.name != "checkpoints" and not path.name.startswith(".") and path.is_dir():
            yield from _directories(path, seen)


class _Table:
    """The values of the rows, and what is not in a row.

    Attributes:
      rows: The seed and the value in percent of each run, by its path, for each row.
      left_out: Lines for the runs that have no value.
    """

    def __init__(self) -> None:
        self.rows: dict[_Row, dict[str, tuple[Any, float]]] = {}
        self.left_out: list[str] = []

    def add(self, directory: epath.Path) -> None:
        """Adds what is in a directory, without its subdirectories."""
        try:
            run = read_run(directory)
            if (directory / METRICS).exists():
                self._add_metrics(directory, read_json(directory / METRICS))
            elif run is not None and run.finished:
                self._add(_logged(run), directory, run)
            if run is not None and not run.finished:
                self.left_out.append(
                    f"{directory}: unfinished, step {run.step} of {run.config['steps']}"
                )
        except (KeyError, TypeError) as error:
            files = f"{METRICS} is not from `evaluate`, or {CONFIG} not from `train`"
            self.left_out.append(f"{directory}: {files}: {error!r}")
        except InputError as error:
            self.left_out.append(f"{directory}: {error}")

    def _add_metrics(self, directory: epath.Path, metrics: Mapping[str, Any]) -> None:
        path = as_path(str(metrics.get("checkpoint", directory)))
        step = None
        if path.parent.name == "checkpoints":
            step = int(path.name) if path.name.isdigit() else None
            path = path.parents[1]
        run = read_run(path) or read_run(directory)
        self._add({"step": step or (run and run.step), **metrics}, path, run)

    def _add(self, metrics: Mapping[str, Any], path: epath.Path, run: Run | None) -> None:
        metric = next((name for name in _TITLES if metrics.get(name) is not None), None)
        if metric is None:
            raise InputError(f"there is no value of {' or '.join(_TITLES.values())}")
        if not math.isfinite(value := metrics[metric]):
            raise InputError(f"the {_TITLES[metric]} is {value}")
        row = _Row(
            _title(metrics["experiment"], run and run.config),
            _protocol(metrics["protocol"]),
            _TITLES[metric],
            # The value of an unfinished run is not comparable.
            None if run and not run.finished else _published(metrics, metric),
            metrics["step"],
        )
        seed = run.config.get("seed", "?") if run else "?"
        self.rows.setdefault(row, {})[str(path.absolute())] = seed, 100 * value

    def lines(self) -> Iterator[str]:
        """Yields the lines of the table in Markdown."""
        yield "| experiment | protocol | metric | ours | published | difference | seeds | step |"
        yield "|---|---|---|---:|---:|---:|---|---:|"
        for row in sorted(self.rows, key=_order):
            seeds, values = zip(*self.rows[row].values(), strict=True)
            ours = statistics.fmean(values)
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells = (
                *(row.experiment, row.protocol, row.metric, f"{ours:.2f}{spread}"),
                "-" if row.published is None else f"{row.published:.2f}",
                "-" if row.published is None else f"{ours - row.published:+.2f}",
                f"{len(seeds)} ({', '.join(sorted(map(str, seeds)))})",
                "-" if row.step is None else str(row.step),
            )
            yield f"| {' | '.join(cells)} |"
        if self.left_out:
            yield "\nUnfinished, or without a value:\n"
            yield from (f"- {line}" for line in self.left_out)


def _order(row: _Row) -> tuple[Any, ...]:
    """Sorts rows as `python -m experiments names` does."""
    name = row.experiment.partition(" ")[0]
    position = _NAMES.index(name) if name in _NAMES else len(_NAMES)
    return position, row.experiment, row.protocol, row.metric, row.step or 0


def main(arguments: list[str]) -> None:
    if len(arguments) == 1:
        raise InputError("there is no directory; use: python -m experiments.table DIR...")
    table, seen = _Table(), set()
    for name in arguments[1:]:
        directory = as_path(name)
        if not directory.is_dir():
            raise InputError(f"there is no directory {name}; use one with runs")
        for path in _directories(directory, seen):
            table.add(path)
    if not table.rows and not table.left_out:
        raise InputError(f"there are no runs in {' and '.join(arguments[1:])}")
    print("\n".join(table.lines()))


if __name__ == "__main__":
    cli.run(main, positional=True)
