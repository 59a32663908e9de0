"""Shows where a run hangs."""

import faulthandler
import sys
import time


class StallReport:
    """Context manager that prints the stacks of all threads, once, if a step takes too long.

    Args:
      timeout: The number of seconds, or None or 0 for no report.
    """

    def __init__(self, timeout: float | None):
        self._timeout = timeout if timeout and sys.__stderr__ is not None else None
        self._since: float | None = None

    def __enter__(self) -> "StallReport":
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()

    def start_step(self) -> None:
        """Starts the clock of a step, and stops that of the step before."""
        self.pause()
        if self._timeout is not None:
            self._since = time.monotonic()
            faulthandler.dump_traceback_later(self._timeout, file=sys.__stderr__)

    def pause(self) -> None:
        """Stops the clock until the next step."""
        if self._since is not None:
            faulthandler.cancel_dump_traceback_later()
            if time.monotonic() - self._since > self._timeout:
                self._timeout = None  # once is enough
            self._since = None
