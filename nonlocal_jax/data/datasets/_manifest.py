"""The manifest of a prepared dataset: its examples, and the sizes of its files."""

import hashlib
import json
import os
from collections.abc import Mapping

from etils import epath

from nonlocal_jax._files import write_json
from nonlocal_jax.errors import InputError

FILE = "manifest.json"


def write(directory: epath.Path, examples: Mapping[str, int], checksums: Mapping[str, int]) -> None:
    """Writes ``manifest.json``.

    Args:
      directory: The prepared dataset. The manifest contains the size of each file in it.
      examples: The number of examples of each split.
      checksums: The CRC-32 of the examples of each split. Without it, another dataset whose files
        have the same sizes would have the same manifest.
    """
    sizes = {path.name: os.stat(path).st_size for path in sorted(directory.iterdir())}
    manifest = {"examples": dict(examples), "crc32": dict(checksums), "files": sizes}
    write_json(directory / FILE, manifest)


def digest(directory: epath.Path) -> str:
    """Returns a short hash of the manifest."""
    return hashlib.sha256((directory / FILE).read_bytes()).hexdigest()[:8]


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
        sizes = read_sizes((directory / FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, InputError):
        return f"{FILE} is missing or damaged"
    for name, expected in sizes.items():
        try:
            with open(directory / name, "rb") as file:
                actual = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return f"{name} is missing"
        if actual != expected:
            return f"{name} has {actual:,} bytes instead of {expected:,}"
    return None
