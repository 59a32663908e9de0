"""Non-local networks in JAX: operations, Flax blocks, networks and their published experiments."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nonlocal_jax import blocks, convert, data, evaluation, models, ops, train
    from nonlocal_jax.models import create_model

__version__ = "0.1.0"

_SUBMODULES = (
    "backbones",
    "blocks",
    "convert",
    "data",
    "errors",
    "evaluation",
    "heads",
    "layers",
    "models",
    "ops",
    "sharding",
    "tasks",
    "train",
    "visualize",
)

__all__ = ["blocks", "convert", "create_model", "data", "evaluation", "models", "ops", "train"]


def __getattr__(name: str):
    # Submodules load on first use, so that the blocks alone need jax and flax alone.
    if name == "create_model":
        return importlib.import_module("nonlocal_jax.models").create_model
    if name in _SUBMODULES:
        return importlib.import_module(f"nonlocal_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES, "create_model"})
