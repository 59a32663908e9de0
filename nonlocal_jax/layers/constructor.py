"""Constructors of modules that are compared by value."""

import functools
from collections.abc import Hashable


class Constructor(functools.partial):
    """A ``functools.partial`` that equals another with the same function and arguments.

    All arguments must be hashable. Modules with such a constructor as an attribute are equal if all
    their attributes are. ``jax.jit`` compiles a function once for equal static arguments. A plain
    ``functools.partial`` equals only itself, not even its own copy.
    """

    def _values(self) -> Hashable:
        return self.func, self.args, frozenset(self.keywords.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constructor) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())
