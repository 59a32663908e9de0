"""Errors that a user can cause and correct."""

from collections.abc import Collection


class InputError(ValueError):
    """An argument, a config, a file or data is invalid.

    The message says what is wrong and what to do. The commands print it without a traceback and
    exit with status 2.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error of Python, XLA or OpenCV means that memory is exhausted."""
    text = str(error)
    return isinstance(error, MemoryError) or any(
        sign in text
        for sign in ("RESOURCE_EXHAUSTED", "Out of memory", "Insufficient memory", "OutOfMemory")
    )


def first_line(error: Exception) -> str:
    """Returns the first line of another library's error message. The rest is often very long."""
    return str(error).strip().partition("\n")[0]


def listing(items: Collection[str], max_lines: int = 6) -> str:
    """Formats the first items, one per line, to append to a message."""
    lines = list(items)
    if len(lines) > max_lines:
        lines[max_lines - 1 :] = [f"and {len(lines) - max_lines + 1:,} more"]
    return "".join(f"\n  {line}" for line in lines)
