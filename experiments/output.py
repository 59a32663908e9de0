"""The directories and files that commands write."""

import json
import pathlib
import tempfile
from typing import Any

from nonlocal_jax.errors import InputError
from nonlocal_jax.files import write_file


def make_directory(path: str) -> pathlib.Path:
    """Makes a directory and tries whether it can be written: before the work, not after it.

    Raises:
      InputError: it cannot.
    """
    directory = pathlib.Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(f"cannot write to the directory {path}: {error.strerror}") from error
    return directory


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON; the file appears whole or not at all."""
    write_file(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
