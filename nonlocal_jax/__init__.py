"""Non-local networks in JAX: operations, Flax blocks, networks and their published experiments."""

from typing import TYPE_CHECKING

from nonlocal_jax._lazy import import_on_use

if TYPE_CHECKING:
    from nonlocal_jax import (
        backbones,
        blocks,
        compilation,
        config,
        configs,
        convert,
        data,
        distributed,
        errors,
        evaluation,
        heads,
        layers,
        models,
        ops,
        sharding,
        tasks,
        topology,
        train,
        visualize,
    )
    from nonlocal_jax.models import create_model

__version__ = "0.1.0"

__all__ = [
    "backbones",
    "blocks",
    "compilation",
    "config",
    "configs",
    "convert",
    "create_model",
    "data",
    "distributed",
    "errors",
    "evaluation",
    "heads",
    "layers",
    "models",
    "ops",
    "sharding",
    "tasks",
    "topology",
    "train",
    "visualize",
]

# The blocks need jax and flax only.
import_on_use(globals(), {"create_model": "models"})
