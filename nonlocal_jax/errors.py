"""Errors that a user can cause and correct."""

import errno
import os
from collections.abc import Collection

# What the operating system says of a disk or a directory that is full, fails, or is gone.
_DISK_ERRORS = ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EACCES", "ENOENT", "ESTALE")
_DISK_REASONS = [os.strerror(getattr(errno, name)) for name in _DISK_ERRORS]


class InputError(ValueError):
    """An argument, a config, a file or data is invalid.

    The message says what is wrong and what to do. The commands print it without a traceback and
    exit with status 2.
    """


def first_line(error: Exception) -> str:
    """Returns the first line of another library's error message. The rest is often very long."""
    return str(error).strip().partition("\n")[0]


def disk_reason(error: BaseException | None) -> str | None:
    """Returns what the operating system said, such as "No space left on device", or None.

    Other libraries quote it in messages of several lines, or raise other errors from it.
    """
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if quoted := [reason for reason in _DISK_REASONS if reason in str(error)]:
            return quoted[0]
        error = error.__cause__ or error.__context__
    return None


def listing(items: Collection[str], max_lines: int = 6) -> str:
    """Formats the first items, one per line, to append to a message."""
    lines = list(items)
    if len(lines) > max_lines:
        lines[max_lines - 1 :] = [f"and {len(lines) - max_lines + 1:,} more"]
    return "".join(f"\n  {line}" for line in lines)
