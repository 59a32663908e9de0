"""Checksums of the files in a directory, in a file for the command ``sha256sum --check``."""

import errno
import hashlib
import os
import pathlib
import stat
from collections.abc import Collection

from etils import epath

from nonlocal_jax._files import is_bucket, write_file
from nonlocal_jax.errors import InputError

FILE = "SHA256SUMS"

# Errors of files that are lost. Others, such as too many open files, pass.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)


def write(directory: epath.Path) -> None:
    """Writes the checksums of all files in the subdirectories. The files are on the disk then."""
    lines = (f"{_checksum(directory / name, sync=True)}  {name}\n" for name in _files(directory))
    write_file(directory / FILE, "".join(lines))


def exist(directory: epath.Path) -> bool:
    """Returns whether a directory has checksums. Early versions of this library wrote none."""
    return (directory / FILE).exists()


def find_damage(directory: epath.Path, items: Collection[str] | None = None) -> str | None:
    """Describes the first file that is missing, has changed, or is not in the list.

    Args:
      directory: A directory for which ``write`` was called.
      items: The subdirectories to check, or None for all.

    Returns:
      None if nothing is damaged, or there are no checksums.

    Raises:
      InputError: The files cannot be read for now, which says nothing about them. For example,
        there is no permission, or too many files are open.
    """
    if not exist(directory):
        return None
    name = FILE
    try:
        if not (directory / FILE).is_file():
            return f"{FILE} is not a file"
        lines = (directory / FILE).read_bytes().decode(errors="replace").splitlines()
        listed = {name: checksum for checksum, _, name in (line.partition("  ") for line in lines)}
        files = _files(directory)
        # Only files that are there are opened. A name in the list may be that of a device.
        if different := sorted(listed.keys() ^ set(files)):
            name = different[0]
            return f"{name!r} is missing" if name in listed else f"{FILE} has no {name!r}"
        for name in files:
            wanted = items is None or name.partition("/")[0] in items
            if wanted and _checksum(directory / name) != listed[name]:
                return f"the checksum of {name!r} is wrong"
    except OSError as error:
        if error.errno in _DAMAGE:
            return f"{name!r}: {error.strerror}"
        raise InputError(
            f"cannot read {error.filename or directory / name}: {error.strerror}; run the command "
            "again when it can be read"
        ) from error
    return None


def _files(directory: epath.Path) -> list[str]:
    """Lists the regular files in the subdirectories. Unlike ``glob``, it skips no errors."""

    def fail(error: OSError) -> None:
        raise error

    def without_protocol(path: object) -> str:  # fsspec leaves it out
        return str(path).removeprefix("gs://").lstrip("/")

    paths = [
        pathlib.PurePosixPath(without_protocol(folder)).relative_to(without_protocol(directory))
        / name
        for folder, _, names in directory.walk(on_error=fail)
        for name in names
        if name  # an object may stand for a directory
    ]
    return sorted(
        path.as_posix()
        for path in paths
        if len(path.parts) > 1
        and (is_bucket(directory) or stat.S_ISREG((directory / path).stat().mode))
    )


def _checksum(path: epath.Path, *, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync and not is_bucket(path):
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
