"""Stops a run between two steps after SIGTERM or Ctrl-C."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class ShutdownRequest:
    """Context manager that catches the first SIGTERM or SIGINT.

    The second signal ends the process as usual. Python delivers signals only to the main thread. In
    other threads the context manager does nothing. Several processes must stop at the same step:
    JAX's preemption service catches SIGTERM, and the processes agree on a step.

    Attributes:
      signal: The signal that was caught, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous = {}

    def __enter__(self) -> "ShutdownRequest":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def requested(self, step: int) -> bool:
        """Returns whether to stop now.

        All processes must call this method with the same step. It returns the same value in all.
        """
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _catch(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
