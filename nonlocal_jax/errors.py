"""Errors that a user can cause and mend."""


class InputError(ValueError):
    """Something given from outside is wrong; the message says what, and what to do about it.

    The commands print it without a traceback and exit with status 2.
    """
