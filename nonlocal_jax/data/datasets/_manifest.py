"""The manifest of a prepared dataset: the sizes of its files."""

import json
import os

from etils import epath

from nonlocal_jax._files import write_json

FILE = "manifest.json"


def write(directory: epath.Path) -> None:
    """Writes the sizes of all files of a directory to ``manifest.json`` in it."""
    sizes = {path.name: os.stat(path).st_size for path in sorted(directory.iterdir())}
    write_json(directory / FILE, {"files": sizes})


def read(directory: epath.Path) -> dict[str, int]:
    """Returns the size of each file.

    Raises:
      OSError, KeyError, TypeError, ValueError: The manifest is missing or damaged.
    """
    return dict(json.loads((directory / FILE).read_text())["files"])


def damage(directory: epath.Path) -> str | None:
    """Returns how a directory differs from its manifest, or None."""
    try:
        sizes = read(directory)
    except (OSError, KeyError, TypeError, ValueError):
        return f"{FILE} is missing or damaged"
    for name, expected in sizes.items():
        try:
            actual = os.stat(directory / name).st_size
        except OSError:
            return f"{name} is missing"
        if actual != expected:
            return f"{name} has {actual:,} bytes instead of {expected:,}"
    return None
