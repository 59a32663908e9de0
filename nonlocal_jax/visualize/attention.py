"""Reads the attention of a block from a network."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from nonlocal_jax import ops
from nonlocal_jax.errors import InputError


def attention_map(
    model: nn.Module,
    variables: Mapping[str, Any],
    inputs: jax.Array,
    position: Sequence[int],
    block: str | None = None,
) -> np.ndarray:
    """Returns the attention weights of one position of an image or a clip.

    They are one row of the N x N attention matrix. The other rows are not computed. For a
    disentangled block they are the pairwise term. The unary term is the same for all positions.

    Args:
      model: A network with non-local blocks of a softmax mode.
      variables: Variables of the model.
      inputs: One normalized RGB image ``[1, H, W, 3]`` or clip ``[1, T, H, W, 3]``.
      position: (row, column) in the image, or (frame, row, column) in the clip.
      block: Path of the block in the model, such as "decode_head/block". Default: the only block of
        the model.

    Returns:
      Weights ``[H', W']`` or ``[T', H', W']``, the size of the block's keys. They are nonnegative,
      and their sum is one. For a block with ``axes="space"``, they are zero in all other frames.
      For a block with ``axes="time"``, they are zero at all other places.

    Raises:
      InputError: The inputs have the wrong shape, the position is outside them, the model has no
        such block, or it has several and ``block`` is None.
    """
    if inputs.ndim not in (4, 5) or inputs.shape[0] != 1 or inputs.shape[-1] != 3:
        raise InputError(
            f"inputs have the shape {inputs.shape}; "
            "use one normalized image [1, H, W, 3] or clip [1, T, H, W, 3]"
        )
    size = inputs.shape[1:-1]
    if len(position) != len(size) or not all(
        0 <= p < s for p, s in zip(position, size, strict=True)
    ):
        order = "(frame, row, column)" if len(size) == 3 else "(row, column)"
        raise InputError(
            f"position {tuple(position)} is outside the input; use {order} from "
            f"{(0,) * len(size)} to {tuple(s - 1 for s in size)}"
        )
    path, query, key = _query_and_key(model, variables, inputs, block)
    index = tuple(p * n // s for p, n, s in zip(position, query.shape[:-1], size, strict=True))
    # Index of the keys that the query attends to.
    related: tuple = ()
    if len(size) == 3:
        axes = model.module_paths(jax.random.key(0), inputs)[path].axes
        related = {"spacetime": (), "space": index[:1], "time": (slice(None), *index[1:])}[axes]
    keys = key[related]
    weights = ops.attention_weights(query[index][None], keys.reshape(-1, keys.shape[-1]))
    found = np.zeros(key.shape[:-1], weights.dtype)
    found[related] = np.asarray(weights).reshape(keys.shape[:-1])
    return found


def _query_and_key(
    model: nn.Module, variables: Mapping[str, Any], inputs: jax.Array, block: str | None
) -> tuple[str, jax.Array, jax.Array]:
    """Returns the path of a block, and its queries and keys as maps ``[*S, C]``."""
    recorded = _recorded(variables, inputs, model=model)
    paths = [path.removesuffix("/query") for path in recorded if path.endswith("/query")]
    if not paths:
        raise InputError(
            "no block of the model has a separate attention map for each position; use a nonlocal "
            "or disentangled_nonlocal block of mode embedded_gaussian or gaussian"
        )
    if (block is None and len(paths) > 1) or block not in (None, *paths):
        wrong = "there are several blocks" if block is None else f"there is no block {block!r}"
        raise InputError(f"{wrong}; set block to {' or '.join(paths)}")
    path = block or paths[0]
    ((query,), (key,)) = (recorded[f"{path}/{name}"] for name in ("query", "key"))
    return path, query[0], key[0]


@functools.partial(jax.jit, static_argnames="model")
def _recorded(
    variables: Mapping[str, Any], inputs: jax.Array, *, model: nn.Module
) -> dict[str, tuple[jax.Array]]:
    """Returns the maps ``[B, *S, C]`` that blocks record, by path. Each is in a tuple of one."""
    _, recorded = model.apply(variables, inputs, mutable=["intermediates"])
    return flatten_dict(dict(recorded.get("intermediates", {})), sep="/")
