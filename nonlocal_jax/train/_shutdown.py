"""Stops a run between two steps after SIGTERM, SIGHUP or Ctrl-C."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from nonlocal_jax import distributed
from nonlocal_jax._interrupt import Interrupted, interruptible
from nonlocal_jax._signals import STOP_SIGNALS

Value = TypeVar("Value")

# Further signals within this many seconds belong to the first one: a terminal that is closed and
# impatient users send several.
_SAME_REQUEST = 1.0
# Several processes number the moments of an evaluation by this many seconds.
_TICK = 0.1


class ShutdownRequest:
    """Context manager that catches the first SIGTERM, SIGINT or SIGHUP.

    In a run of one process, a later signal ends the process as usual, but not within a second, so
    that the state can be saved. Signals that the process ignores stay ignored, such as SIGHUP with
    ``nohup``.

    Python delivers signals only to the main thread. In other threads the context manager does
    nothing.

    Several processes must stop at the same step. JAX's preemption service catches SIGTERM in any of
    them, and tells all of them at which of their questions to stop: the one after the last question
    that any process has asked. They number their questions, and no process skips a number. Further
    SIGTERMs have no effect, so only SIGKILL ends a process that hangs.

    Attributes:
      signal: The signal that was caught, or None. Of several processes, those that did not catch it
        have SIGTERM.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._caught: signal.Signals | None = None
        self._caught_at = 0.0
        self._previous = {}
        self._interrupts = False
        self._questions = 0

    def __enter__(self) -> "ShutdownRequest":
        if threading.current_thread() is threading.main_thread():
            caught = STOP_SIGNALS
            if jax.process_count() > 1:
                caught = caught - {signal.SIGTERM}
            for number in caught:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def requested(self) -> bool:
        """Returns whether to stop now.

        Several processes must call this method equally often. It returns the same value in all.
        """
        if jax.process_count() > 1:
            self._ask()
        return self.signal is not None

    def interrupt(self, function: Callable[[], Value]) -> Value | None:
        """Calls a function. Returns None if a signal interrupts the call, which may be anywhere.

        Several processes interrupt it where it uses ``until_stopped``.
        """
        if self.signal is not None:
            return None
        if jax.process_count() > 1:
            return self._interrupt_all(function)
        try:
            self._interrupts = True
            value = function()
            self._interrupts = False
        except Interrupted:
            return None
        finally:
            self._interrupts = False
        return value

    def _interrupt_all(self, function: Callable[[], Value]) -> Value | None:
        # The processes work on examples of their own, so they ask at different times. Their
        # questions are numbered by the time, so that all reach the same number almost at once.
        start, first = time.monotonic(), self._questions

        def stop_requested() -> bool:
            while self._questions - first < (time.monotonic() - start) / _TICK:
                self._ask()
            return self.signal is not None

        try:
            with interruptible(stop_requested):
                value = function()
        except Interrupted:
            value = None
        last = max(distributed.gather(lambda: self._questions))
        while self._questions < last:
            self._ask()
        return None if self.signal is not None else value

    def _ask(self) -> None:
        self._questions += 1
        if multihost_utils.reached_preemption_sync_point(self._questions):
            self.signal = self._caught or signal.SIGTERM

    def _catch(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._caught is None:
            self._caught, self._caught_at = signal.Signals(number), now
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)  # for JAX's preemption service
                return
            self.signal = self._caught
            if self._interrupts:
                raise Interrupted
        elif now - self._caught_at > _SAME_REQUEST:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
