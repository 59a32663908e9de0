"""Lists the commands, or the experiments.

python -m experiments          the commands
python -m experiments names    the value of --config of each experiment
"""

import ast
import pathlib
import sys

from experiments import cli
from experiments._names import all_configs

_DIRECTORY = pathlib.Path(__file__).parent


def _summary(path: pathlib.Path) -> str:
    """Returns the first line of the docstring of a file."""
    return ast.get_docstring(ast.parse(path.read_text())).partition("\n")[0]


def _list_commands() -> None:
    files = {path.stem: path for path in _DIRECTORY.glob("[a-z]*.py") if path.stem != "cli"}
    files |= {path.parent.name: path for path in _DIRECTORY.glob("*/__main__.py")}
    print("Commands:\n")
    for name, path in sorted(files.items()):
        print(f"  python -m experiments.{name:14}{_summary(path)}")
    print(
        "\n`python -m experiments.COMMAND --help` lists the flags of a command, and\n"
        "`python -m experiments names` the experiments for --config."
    )


def main(arguments: list[str]) -> None:
    if not arguments:
        _list_commands()
    elif arguments == ["names"]:
        print("\n".join(all_configs()))
    else:
        cli.fail(
            f"unknown argument {arguments[0]!r}; use `python -m experiments.COMMAND` for a command "
            "that `python -m experiments` lists, or `python -m experiments names`"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
