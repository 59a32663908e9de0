"""Names of a package that are imported on first use, so that only what is used need be there."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def names(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package; ``modules`` says which names are where."""
    homes = {name: module for module, own in modules.items() for name in own}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return get, lambda: sorted({*vars(sys.modules[package]), *homes})
