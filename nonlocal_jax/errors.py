"""Errors that a user can cause and mend."""

from collections.abc import Collection

_MAX_LINES = 6


class InputError(ValueError):
    """Something given from outside is wrong; the message says what, and what to do about it.

    The commands print it without a traceback and exit with status 2.
    """


def first_line(error: Exception) -> str:
    """What an error of another library says, without the pages that may follow."""
    return str(error).strip().partition("\n")[0]


def listing(items: Collection[str]) -> str:
    """One item a line, the first few of them, to append to a message."""
    lines = list(items)
    if len(lines) > _MAX_LINES:
        lines[_MAX_LINES - 1 :] = [f"and {len(lines) - _MAX_LINES + 1} more"]
    return "".join(f"\n  {line}" for line in lines)
