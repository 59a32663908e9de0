"""SIGTERM and Ctrl-C end a run between two steps."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class ShutdownRequest:
    """Notes the first SIGTERM or SIGINT in place of obeying it; the second one ends the process.

    A context manager, for the main thread: Python gives signals to no other, and there it does
    nothing. Several processes have to stop at the same step, so there JAX's preemption service
    notes SIGTERM and agrees on one.

    Attributes:
      signal: what came, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous = {}

    def __enter__(self) -> "ShutdownRequest":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def requested(self, step: int) -> bool:
        """Whether to stop now; all processes ask with the same step and get the same answer."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
