"""Names of a package that are imported on first use."""

import importlib
import sys
from collections.abc import Mapping
from typing import Any

# The extra of pyproject.toml that installs what a part of the library imports.
_EXTRAS = {
    "compilation": "train",
    "convert": "convert",
    "data": "data",
    "evaluation": "data",
    "train": "train",
    "visualize": "visualize",
}


def import_on_use(namespace: dict[str, Any], modules: Mapping[str, str]) -> None:
    """Gives a package a ``__getattr__`` that imports its names, and a ``__dir__`` that lists them.

    If a name needs a package of an extra that is not installed, ``__getattr__`` raises an
    ``AttributeError`` that says what to install. ``__all__`` then lacks this name, so that
    ``import *`` imports the other names. Reading ``__all__`` imports every module.

    Args:
      namespace: ``globals()`` of the package. ``__all__`` lists the public names.
      modules: The module of the package that defines each name. A name of ``__all__`` that is
        neither here nor in the namespace is a module.
    """
    package = namespace["__name__"]
    public = namespace.pop("__all__")

    def get(name: str) -> Any:
        if name == "__all__":
            return [name for name in public if hasattr(sys.modules[package], name)]
        if name not in public:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        path = f"{package}.{modules.get(name, name)}"
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError as error:
            part, missing = path.split(".")[1], str(error.name).partition(".")[0]
            is_installed = missing in sys.modules and sys.modules[missing] is not None
            if part not in _EXTRAS or is_installed:
                raise
            message = (
                f"{package}.{name} needs {missing}, which is not installed; "
                f"run pip install 'nonlocal_jax[{_EXTRAS[part]}]'"
            )
            # ``from package import name`` drops the message of an AttributeError. CPython then
            # calls this function from ``_handle_fromlist``.
            if sys._getframe(1).f_code.co_name == "_handle_fromlist":
                raise ModuleNotFoundError(message, name=missing) from error
            raise AttributeError(message, name=name, obj=sys.modules[package]) from error
        return getattr(module, name) if name in modules else module

    namespace["__getattr__"] = get
    namespace["__dir__"] = lambda: sorted({n for n in namespace if n.startswith("_")} | {*public})
