"""How several processes interrupt long work. One process is interrupted by an exception."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from nonlocal_jax import distributed

Item = TypeVar("Item")


def _never() -> bool:
    return False


_stop_requested: Callable[[], bool] = _never


class Interrupted(BaseException):  # like KeyboardInterrupt, nothing else catches it
    """Ends the work, because the run is to stop."""


@contextlib.contextmanager
def interruptible(stop_requested: Callable[[], bool]) -> Iterator[None]:
    """Sets what ``until_stopped`` asks between two items."""
    global _stop_requested
    _stop_requested = stop_requested
    try:
        yield
    finally:
        _stop_requested = _never


def until_stopped(items: Iterable[Item], *, together: bool = False) -> Iterator[Item]:
    """Yields the items until the run is to stop. Call ``check_interrupted`` afterwards.

    Args:
      items: The items of this process.
      together: Whether the processes work on each item together, and so must end at the same one.
    """
    for item in items:
        if any(distributed.gather(_stop_requested)) if together else _stop_requested():
            return
        yield item


def check_interrupted() -> None:
    """Ends work that is incomplete. Call it after the last exchange between the processes.

    Raises:
      Interrupted: The run is to stop.
    """
    if _stop_requested():
        raise Interrupted
