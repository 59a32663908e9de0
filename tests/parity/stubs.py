"""Modules that OpenMMLab's packages import and that no network here uses."""

import importlib.machinery
import sys
import types
from typing import Any


class _Stub(types.ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def install(name: str) -> None:
    """Puts a stub in the place of a module that is missing."""
    module = _Stub(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules[name] = module
