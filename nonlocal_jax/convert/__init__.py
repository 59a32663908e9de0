"""Checkpoints in and out: PyTorch's formats without PyTorch, and safetensors with Flax names."""

from nonlocal_jax.convert.checkpoints import (
    export_torch,
    from_torch,
    load,
    read_model_config,
    save,
    to_torch,
)

__all__ = ["export_torch", "from_torch", "load", "read_model_config", "save", "to_torch"]
