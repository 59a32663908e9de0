"""Errors that a user can cause and correct."""

from collections.abc import Collection

_MAX_LINES = 6


class InputError(ValueError):
    """An argument, a config, a file or data is invalid.

    The message says what is wrong and what to do. The commands print it without a traceback and
    exit with status 2.
    """


def first_line(error: Exception) -> str:
    """Returns the first line of another library's error message. The rest is often very long."""
    return str(error).strip().partition("\n")[0]


def listing(items: Collection[str]) -> str:
    """Formats the first few items, one per line, to append to a message."""
    lines = list(items)
    if len(lines) > _MAX_LINES:
        lines[_MAX_LINES - 1 :] = [f"and {len(lines) - _MAX_LINES + 1} more"]
    return "".join(f"\n  {line}" for line in lines)
