"""Prints the last saved step of a run, or "finished" if the run is complete.

    python -m experiments.launch.saved WORKDIR

The launchers compare what it prints before and after each attempt, see restart.sh.
"""

from experiments import cli
from experiments._runs import read_run
from nonlocal_jax._files import as_path
from nonlocal_jax.errors import InputError


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise InputError("use: python -m experiments.launch.saved WORKDIR")
    run = read_run(as_path(arguments[1]))
    print("finished" if run and run.finished else run.step if run else 0)


if __name__ == "__main__":
    cli.run(main, positional=True)
