"""Lists the commands, or the experiments.

python -m experiments                    the commands
python -m experiments names [PATTERN]    the value of --config of each experiment, or of those whose
                                         names match a pattern such as 'nonlocal_*_cityscapes'
"""

import ast
import pathlib
import signal
import sys

from experiments import cli
from experiments._names import match_configs
from nonlocal_jax.errors import InputError

_DIRECTORY = pathlib.Path(__file__).parent


def _summary(path: pathlib.Path) -> str:
    """Returns the first line of the docstring of a file."""
    return ast.get_docstring(ast.parse(path.read_text())).partition("\n")[0]


def _commands() -> dict[str, pathlib.Path]:
    """Returns the files of the commands by name."""
    files = {path.stem: path for path in _DIRECTORY.glob("[a-z]*.py") if path.stem != "cli"}
    files |= {path.parent.name: path for path in _DIRECTORY.glob("*/__main__.py")}
    return dict(sorted(files.items()))


def _list_commands() -> None:
    print("Commands:\n")
    for name, path in _commands().items():
        print(f"  python -m experiments.{name:14}{_summary(path)}")
    print(
        "\n`python -m experiments.COMMAND --help` lists the flags of a command, and\n"
        "`python -m experiments names` the experiments for --config."
    )


def main(arguments: list[str]) -> None:
    if not arguments:
        _list_commands()
    elif arguments[0] == "names" and len(arguments) <= 2:
        try:
            print("\n".join(match_configs(*arguments[1:])))
        except InputError as error:
            cli.fail(error)
    elif arguments[0] in _commands():
        cli.fail(f"use `python -m experiments.{' '.join(arguments)}`")
    else:
        cli.fail(
            f"unknown argument {arguments[0]!r}; use `python -m experiments.COMMAND` for a command "
            "that `python -m experiments` lists, or `python -m experiments names [PATTERN]`"
        )


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # end quietly in `python -m experiments names | head`
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
