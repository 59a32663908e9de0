"""Random draws that are recorded, to be given to other programs."""

from typing import Any

import numpy as np


class Recorder:
    """A generator of random numbers that keeps what it draws."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)
        self.drawn: list[tuple[str, tuple, Any]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._rng, name)

        def draw(*arguments, **options):
            value = method(*arguments, **options)
            self.drawn.append((name, arguments, value))
            return value

        return draw
