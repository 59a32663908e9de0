"""Non-local networks in JAX: operations, Flax blocks, networks and their published experiments."""

from etils import epy

# Imported on first use: the blocks need jax and flax only.
with epy.lazy_api_imports(globals()):
    from nonlocal_jax import (
        backbones,
        blocks,
        config,
        convert,
        data,
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
    "config",
    "convert",
    "create_model",
    "data",
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
