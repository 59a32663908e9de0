"""Errors that a user can cause and correct."""

import errno
import os
from collections.abc import Collection

# What the operating system says of a disk that is full, fails, or cannot be written.
_DISK_REASONS = [
    os.strerror(getattr(errno, name)) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS")
]


class InputError(ValueError):
    """An argument, a config, a file or data is invalid.

    The message says what is wrong and what to do. The commands print it without a traceback and
    exit with status 2.
    """


def printable(text: str, max_length: int = 200) -> str:
    """Returns text from a file in a form that is safe to print.

    Control characters, line breaks and characters that reverse the direction of text are escaped.
    The middle of a long text is left out.
    """
    if len(text) > max_length:
        half = max_length // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error of Python, XLA or OpenCV means that memory is exhausted."""
    text = str(error)
    return isinstance(error, MemoryError) or any(
        sign in text
        for sign in ("RESOURCE_EXHAUSTED", "Out of memory", "Insufficient memory", "OutOfMemory")
    )


def first_line(error: Exception) -> str:
    """Returns the first line of another library's error message. The rest is often very long."""
    return printable(str(error).strip().partition("\n")[0])


def disk_reason(error: BaseException | None) -> str | None:
    """Returns what the operating system said, such as "No space left on device", or None.

    Other libraries quote it in messages of several lines, or raise other errors from it.
    """
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if quoted := [reason for reason in _DISK_REASONS if reason in str(error)]:
            return quoted[0]
        hidden = error.__suppress_context__  # "from" sets it
        error = error.__cause__ if hidden else error.__context__
    return None


def listing(items: Collection[str], max_lines: int = 6) -> str:
    """Formats the first items, one per line, to append to a message. They may be from a file."""
    lines = list(items)
    if len(lines) > max_lines:
        lines[max_lines - 1 :] = [f"and {len(lines) - max_lines + 1:,} more"]
    return "".join(f"\n  {printable(line, 1000)}" for line in lines)
