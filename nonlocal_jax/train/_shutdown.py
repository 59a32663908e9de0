"""Stops a run between two steps after SIGTERM, SIGHUP or Ctrl-C."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from nonlocal_jax._signals import STOP_SIGNALS

Value = TypeVar("Value")

# Further signals within this many seconds belong to the first one: a terminal that is closed and
# impatient users send several.
_SAME_REQUEST = 1.0


class _Interrupted(BaseException):  # like KeyboardInterrupt, nothing else catches it
    """Ends a call of ``ShutdownRequest.interrupt``."""


class ShutdownRequest:
    """Context manager that catches the first SIGTERM, SIGINT or SIGHUP.

    A later signal ends the process as usual, but not within a second, so that the state can be
    saved. Signals that the process ignores stay ignored, such as SIGHUP with ``nohup``.

    Python delivers signals only to the main thread. In other threads the context manager does
    nothing. Several processes must stop at the same step: JAX's preemption service catches SIGTERM,
    and the processes agree on a step.

    Attributes:
      signal: The signal that was caught, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous = {}
        self._caught_at = 0.0
        self._interrupts = False

    def __enter__(self) -> "ShutdownRequest":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
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

    def interrupt(self, function: Callable[[], Value]) -> Value | None:
        """Calls a function without side effects. Returns None if a signal interrupts the call.

        Of several processes none is interrupted.
        """
        if self.signal is not None:
            return None
        try:
            self._interrupts = True
            value = function()
            self._interrupts = False
        except _Interrupted:
            return None
        finally:
            self._interrupts = False
        return value

    def _catch(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._caught_at = signal.Signals(number), now
            if self._interrupts:
                raise _Interrupted
        elif now - self._caught_at > _SAME_REQUEST:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
