"""The kinds of files that are fuzzed. Add an entry to ``KINDS`` for another kind."""

import contextlib
import functools
import random
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import NamedTuple

from nonlocal_jax.errors import InputError
from tests.fuzz import images, legacy, models, pickles, safetensors, zips


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
      suffix: The end of the files' names.
      cases: The number of random files in the whole run.
      read: Reads a file. It may raise ``InputError`` and nothing else.
      random_one: Returns the bytes of a random file.
      hostile: Returns files that were written to break a reader, by name.
      prepare: Does once in a process what need not be measured for each file.
    """

    suffix: str
    cases: int
    read: Callable[[str], object]
    random_one: Callable[[random.Random], bytes]
    hostile: Callable[[], Mapping[str, bytes]]
    prepare: Callable[[], object]

    def case(self, seed: int, index: int) -> tuple[str, bytes]:
        """Returns the name and the bytes of a case. The hostile ones come first."""
        cases = cached(self.hostile)
        if index < len(cases):
            return list(cases.items())[index]
        rng = random.Random(f"{seed} {self.suffix} {self.random_one.__module__} {index}")
        return "random", self.random_one(rng)


@functools.cache
def cached(hostile: Callable[[], Mapping[str, bytes]]) -> Mapping[str, bytes]:
    return hostile()


def read_checkpoint(path: str) -> None:
    """Loads a checkpoint as the commands do."""
    from nonlocal_jax import convert

    with contextlib.suppress(InputError):
        convert.read_dataset(path)
    convert.load(path, models.CONFIG)


def _checkpoint(suffix: str, cases: int, module: ModuleType) -> Kind:
    return Kind(suffix, cases, read_checkpoint, module.random_one, module.hostile, models.warm_up)


KINDS = {
    "pickle": _checkpoint(".pkl", 45_000, pickles),
    "zip": _checkpoint(".pth", 5_000, zips),
    "legacy": _checkpoint(".pth", 5_000, legacy),
    "safetensors": _checkpoint(".safetensors", 5_000, safetensors),
    "image": Kind(
        images.SUFFIX,
        images.CASES,
        images.read,
        images.random_one,
        images.hostile,
        images.warm_up,
    ),
}
