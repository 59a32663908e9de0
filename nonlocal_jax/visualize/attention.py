"""Where a chosen pixel looks."""

import functools
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from nonlocal_jax import ops
from nonlocal_jax.blocks import NonLocalBlock
from nonlocal_jax.errors import InputError


def attention_map(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: jax.Array,
    pixel: tuple[int, int],
    *,
    block: str | None = None,
) -> np.ndarray:
    """A_ij of the position i that holds a pixel, over all positions j of the feature map.

    Only that row of the N x N matrix is computed. Of a disentangled block it is the pairwise
    term, without the unary one that all positions share.

    Args:
      model: a network with a softmax non-local block.
      variables: of the model.
      images: one normalized RGB image ``[1, H, W, 3]``.
      pixel: (row, column) in the image.
      block: path of the block in the model, such as "decode_head/block"; needed where there are
        several.

    Returns:
      ``[H', W']`` at the size of the block's keys, not negative, summing to one.

    Raises:
      InputError: the model has no such block, several, or the pixel lies outside of the image.
    """
    chex.assert_shape(
        images, (1, None, None, 3), custom_message="images must be one image [1, H, W, 3]"
    )
    size = images.shape[1:3]
    if not all(0 <= p < extent for p, extent in zip(pixel, size, strict=True)):
        raise InputError(f"pixel {tuple(pixel)} lies outside of the image of size {size}")
    queries, keys = _queries_and_keys(variables, images, model=model, block=block)
    height, width, channels = queries.shape
    row, column = pixel[0] * height // size[0], pixel[1] * width // size[1]
    weights = ops.attention_weights(queries[row, column][None], keys.reshape(-1, channels))
    return np.asarray(weights).reshape(keys.shape[:2])


@functools.partial(jax.jit, static_argnames=("model", "block"))
def _queries_and_keys(
    variables: Mapping[str, Any], images: jax.Array, *, model: nn.Module, block: str | None
) -> tuple[jax.Array, jax.Array]:
    """What enters the softmax of a block for one image: maps ``[H', W', C]``."""
    # The block's output is caught beside what it sows, for the size of its feature map.
    _, sown = model.apply(
        variables,
        images,
        mutable=["intermediates"],
        capture_intermediates=lambda module, method: (
            isinstance(module, NonLocalBlock) and method == "__call__"
        ),
    )
    found = flatten_dict(dict(sown.get("intermediates", {})), sep="/")
    paths = [path.removesuffix("/query") for path in found if path.endswith("/query")]
    path = _choose(paths, block)
    (query,), (key,), (output,) = (found[f"{path}/{k}"] for k in ("query", "key", "__call__"))
    height, width = output.shape[1:3]
    queries = query.reshape(height, width, -1)
    if key.shape[1] != height * width:  # max-pooled by two
        height, width = height // 2, width // 2
    return queries, key.reshape(height, width, -1)


def _choose(paths: list[str], block: str | None) -> str:
    if not paths:
        raise InputError(
            "the model has no attention from pixel to pixel to show: it needs a nonlocal or "
            "disentangled_nonlocal block of mode embedded_gaussian or gaussian (the context of "
            "a global_context block is the same for all pixels)"
        )
    if block is None and len(paths) == 1:
        return paths[0]
    if block not in paths:
        asked = "choose one" if block is None else f"there is none at {block!r}"
        raise InputError(f"the model has attention blocks at {', '.join(paths)}: {asked}")
    return block
