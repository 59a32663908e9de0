"""The parts of networks that plain values choose: blocks, norms, and types of the computation."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax import blocks
from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import BatchNorm, Constructor, NormFn

BLOCKS: dict[str, type[nn.Module]] = {
    "nonlocal": blocks.NonLocalBlock,
    "disentangled_nonlocal": blocks.DisentangledNonLocalBlock,
    "global_context": blocks.GlobalContextBlock,
}

NORMS: dict[str, NormFn] = {
    "batch_norm": BatchNorm,
    "frozen_batch_norm": Constructor(BatchNorm, use_running_average=True),
}

# Parameters are float32. The type None therefore computes in float32, and in float64 if variables
# and images are float64.
DTYPES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": None, "precision": jax.lax.Precision.HIGHEST},
    "bfloat16": {"dtype": jnp.bfloat16, "precision": None},
    "default": {"dtype": None, "precision": None},
}


def choose(option: str, name: Any, table: Mapping[str, Any]) -> Any:
    """Returns the entry of a table.

    Raises:
      InputError: There is no such entry. The message names the option of the model.
    """
    if not isinstance(name, str) or name not in table:
        raise InputError(f"{option} is {name!r}; use one of {', '.join(table)}")
    return table[name]


def block_constructor(
    name: str, options: Mapping[str, Any], *, norm: NormFn | None, **compute: Any
) -> Callable[..., nn.Module] | None:
    """Returns the constructor of a block with its options set, or None for "none"."""
    if name == "none":
        return None
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    options = {k.removeprefix("block_"): v for k, v in options.items()}
    block = Constructor(BLOCKS[name], **compute, **options)
    has_batch_norm = getattr(block(parent=None), "norm", None) is BatchNorm
    # A global context block keeps its layer norm.
    return Constructor(block, norm=norm) if has_batch_norm else block
