"""Loads and saves checkpoints: PyTorch's files, ``.safetensors`` files and work directories.

PyTorch is not needed.
"""

from nonlocal_jax.convert.blocks import block_from_torch, block_to_torch, load_block
from nonlocal_jax.convert.checkpoints import (
    export_torch,
    from_torch,
    load,
    read_dataset,
    read_model_config,
    save,
    to_torch,
)
from nonlocal_jax.convert.names import SOURCES
from nonlocal_jax.convert.source import Source

__all__ = [
    "SOURCES",
    "Source",
    "block_from_torch",
    "block_to_torch",
    "export_torch",
    "from_torch",
    "load",
    "load_block",
    "read_dataset",
    "read_model_config",
    "save",
    "to_torch",
]
