"""Errors that a user can cause and correct."""

from collections.abc import Collection

_MAX_LINES = 6


class InputError(ValueError):
    """An argument, a config, a file or data is wrong.

    The message says what is wrong and what to do. The commands print it without a traceback and
    exit with status 2.
    """


def first_line(error: Exception) -> str:
    """The first line of another library's error message. The rest is often pages long."""
    return str(error).strip().partition("\n")[0]


def listing(items: Collection[str]) -> str:
    """One item a line, the first few of them, to append to a message."""
    lines = list(items)
    if len(lines) > _MAX_LINES:
        lines[_MAX_LINES - 1 :] = [f"and {len(lines) - _MAX_LINES + 1} more"]
    return "".join(f"\n  {line}" for line in lines)
