"""What the demos share: training one network, and the table of several seeds."""

import contextlib
import pathlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import cli
from nonlocal_jax import train
from nonlocal_jax._files import write_file
from nonlocal_jax._progress import say
from nonlocal_jax._signals import STOP_SIGNALS
from nonlocal_jax.tasks import get_task


class Network(NamedTuple):
    """A trained network."""

    config: ConfigDict
    variables: Mapping[str, Any]
    metrics: Mapping[str, Any]


def define_seeds() -> flags.FlagHolder:
    """Defines ``--seeds=0,1,2``."""
    seeds = flags.DEFINE_list("seeds", [], "Seeds. All networks are trained once with each.")
    flags.register_validator(
        "seeds", lambda values: all(map(str.isdecimal, values)), "use integers, such as 0,1,2"
    )
    return seeds


class _Stopped(BaseException):  # like KeyboardInterrupt
    """A signal stops the demo."""


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """If a signal stops the demo, says that the same command goes on."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise _Stopped(number)

    numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except _Stopped as stopped:
        number = signal.Signals(stopped.args[0])
        cli.stop(number, "run the same command again to go on from here", 128 + number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train_network(config: ConfigDict, workdir: pathlib.Path) -> Network:
    """Trains a network, or resumes it, and evaluates it."""
    task = get_task(config)
    sources = {split: task.open_source(config, split, None) for split in ("train", "val")}
    evaluate = task.evaluator(config, sources["val"], quick=True)
    result = train.train(config, workdir, sources["train"], evaluate=evaluate)
    if result.signal is not None:
        raise _Stopped(result.signal)
    variables = result.state.variables
    return Network(config, variables, evaluate(variables))


def compare_seeds(
    get_config: Callable[[str], ConfigDict],
    titles: Mapping[str, str],
    metric: tuple[str, str],
    directory: pathlib.Path,
    seeds: Sequence[str],
) -> None:
    """Trains each network with each seed. Prints the table and writes it to seeds.md.

    Args:
      get_config: Maps the name of a network to its config.
      titles: The networks, and what the table calls them.
      metric: Key of the metric, and what the table calls its mean.
      directory: Directory of all results.
      seeds: The seeds.
    """
    key, mean = metric
    lines = [
        f"| network | {' | '.join(f'seed {seed}' for seed in seeds)} | {mean} % |",
        "|---|" + "---:|" * (len(seeds) + 1),
    ]
    for name, title in titles.items():
        values = []
        for seed in seeds:
            config = get_config(name)
            config.seed = int(seed)
            network = train_network(config, directory / f"{name}_{seed}")
            values.append(network.metrics[key])
        cells = " | ".join(f"{100 * value:.1f}" for value in (*values, np.mean(values)))
        lines.append(f"| {title} (`{name}`) | {cells} |")
    table = "\n".join(lines)
    write_file(directory / "seeds.md", table + "\n")
    say(f"\n{table}")
