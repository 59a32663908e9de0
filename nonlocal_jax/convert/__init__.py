"""Loads and saves checkpoints: files of PyTorch and Caffe2, ``.safetensors``, work directories.

Neither PyTorch nor Caffe2 is needed.
"""

from typing import TYPE_CHECKING

from nonlocal_jax._lazy import import_on_use
from nonlocal_jax.convert.names import SOURCES
from nonlocal_jax.convert.source import Source

if TYPE_CHECKING:
    from nonlocal_jax.convert.blocks import block_from_torch, block_to_torch, load_block
    from nonlocal_jax.convert.checkpoints import (
        export_torch,
        from_torch,
        load,
        read_dataset,
        read_model_config,
        save,
        saved_step,
        to_torch,
    )

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
    "saved_step",
    "to_torch",
]

# The description of a naming scheme needs only the base dependencies.
import_on_use(
    globals(),
    {
        "block_from_torch": "blocks",
        "block_to_torch": "blocks",
        "export_torch": "checkpoints",
        "from_torch": "checkpoints",
        "load": "checkpoints",
        "load_block": "blocks",
        "read_dataset": "checkpoints",
        "read_model_config": "checkpoints",
        "save": "checkpoints",
        "saved_step": "checkpoints",
        "to_torch": "checkpoints",
    },
)
