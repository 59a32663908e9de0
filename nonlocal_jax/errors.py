"""Errors that a user can cause and correct."""


class InputError(ValueError):
    """An argument, a config, a file or data is wrong.

    The message says what is wrong and what to do. The commands print it without a traceback and
    exit with status 2.
    """


def first_line(error: Exception) -> str:
    """The first line of another library's error message. The rest is often pages long."""
    return str(error).strip().partition("\n")[0]
