"""Checksums of the files in a directory, in a file for the command ``sha256sum --check``."""

import hashlib
import os
import pathlib

from etils import epath

from nonlocal_jax._files import write_file
from nonlocal_jax.errors import InputError

FILE = "SHA256SUMS"


def write(directory: epath.Path) -> None:
    """Writes the checksums of all files in the subdirectories. The files are on the disk then."""
    paths = sorted(path for path in pathlib.Path(directory).glob("*/**/*") if path.is_file())
    lines = (f"{_checksum(path, sync=True)}  {path.relative_to(directory)}\n" for path in paths)
    write_file(directory / FILE, "".join(lines))


def exist(directory: epath.Path) -> bool:
    """Returns whether a directory has checksums. Early versions of this library wrote none."""
    return (directory / FILE).exists()


def find_damage(directory: epath.Path) -> str | None:
    """Describes the first file that is missing or has changed.

    Returns None if there is no such file, or no checksums.

    Raises:
      InputError: There is no permission to read the files.
    """
    if not exist(directory):
        return None
    name = FILE
    try:
        lines = (directory / FILE).read_bytes().decode(errors="replace").splitlines()
        if not lines:
            return f"{FILE} is empty"
        for line in lines:
            checksum, _, name = line.partition("  ")
            if _checksum(directory / name) != checksum:
                return f"the checksum of {name!r} is wrong"
    except PermissionError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
    except (OSError, ValueError) as error:  # a damaged name may contain NUL
        return f"{name!r}: {getattr(error, 'strerror', None) or error}"
    return None


def _checksum(path: os.PathLike, *, sync: bool = False) -> str:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
