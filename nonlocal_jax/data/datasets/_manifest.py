"""The manifest of a prepared dataset: its numbers of examples, and the sizes of its files."""

import json
import os
from collections.abc import Mapping

from etils import epath

from nonlocal_jax._files import write_json
from nonlocal_jax.errors import InputError

FILE = "manifest.json"


def write(directory: epath.Path, examples: Mapping[str, int]) -> None:
    """Writes ``manifest.json``: the number of examples of each split, the size of each file."""
    sizes = {path.name: os.stat(path).st_size for path in sorted(directory.iterdir())}
    write_json(directory / FILE, {"examples": dict(examples), "files": sizes})


def read_sizes(text: str | bytes) -> dict[str, int]:
    """Returns the size of each file.

    Raises:
      InputError: The text is not that of a manifest.
    """
    try:
        return {str(name): int(size) for name, size in json.loads(text)["files"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{FILE} is damaged") from error


def examples(directory: epath.Path) -> dict[str, int]:
    """Returns the number of examples of each split."""
    return json.loads((directory / FILE).read_text())["examples"]


def damage(directory: epath.Path) -> str | None:
    """Returns how the files of a directory differ from its manifest, or None."""
    try:
        sizes = read_sizes((directory / FILE).read_text())
    except (OSError, InputError):
        return f"{FILE} is missing or damaged"
    for name, expected in sizes.items():
        try:
            actual = os.stat(directory / name).st_size
        except OSError:
            return f"{name} is missing"
        if actual != expected:
            return f"{name} has {actual:,} bytes instead of {expected:,}"
    return None
