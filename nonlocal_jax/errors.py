"""Errors that a user can cause and mend."""


class InputError(ValueError):
    """Something given from outside is wrong; the message says what, and what to do about it.

    The commands print it without a traceback and exit with status 2.
    """


def first_line(error: Exception) -> str:
    """What an error of another library says, without the pages that may follow."""
    return str(error).strip().partition("\n")[0]
