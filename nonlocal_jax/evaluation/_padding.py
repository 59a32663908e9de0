"""Images of different sizes in one batch: padding that does not change the result."""

import contextlib
import functools
import math
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax.blocks import DisentangledNonLocalBlock, GlobalContextBlock, NonLocalBlock
from nonlocal_jax.layers import BatchNorm
from nonlocal_jax.ops._numerics import zero_padding

_BLOCKS = NonLocalBlock, DisentangledNonLocalBlock, GlobalContextBlock


def padded_side(side: int, unit: int, multiple: int) -> int:
    """Returns the size that a side of an image is padded to.

    It is one of a few: ``unit`` times ..., 1/2, 3/4, 1, 3/2, 2, 3, ..., rounded up to a multiple of
    ``multiple``. At most half of the side is added, and nothing if the side is ``unit``, except for
    the rounding.
    """
    power = 2.0 ** math.floor(math.log2(side / unit))
    size = next(size for factor in (1, 1.5, 2) if (size := unit * power * factor) >= side)
    return math.ceil(size / multiple) * multiple


def padding_mask(sizes: jax.Array, padded: tuple[int, int], x: jax.Array) -> jax.Array:
    """Returns the mask ``[B, H, W]`` of a feature map, False where it is padding.

    Args:
      sizes: The (height, width) of each image without its padding, ``[B, 2]``.
      padded: The (height, width) of all images with their padding. They are multiples of the
        network's strides.
      x: The feature map ``[B, H, W, C]``.
    """
    inside = []
    for axis, number in enumerate(x.shape[1:3]):
        stride = padded[axis] // number
        size = (sizes[:, axis, None] + stride - 1) // stride  # strides round up
        inside.append(jnp.arange(number, dtype=sizes.dtype)[None] < size)
    return inside[0][:, :, None] & inside[1][:, None]


@contextlib.contextmanager
def without_padding(sizes: jax.Array, padded: tuple[int, int]) -> Iterator[None]:
    """Inside this context, the padding of images does not change the output of a network.

    The padding is at the bottom and right, and zero. The context keeps it zero: convolutions and
    pools read zeros beyond the border of an image anyway. Only batch norms and blocks could change
    the zeros, so their outputs are set to zero there. Blocks get the mask of the padding.

    At inference only: the statistics of a batch would include the padding.

    Args:
      sizes: See ``padding_mask``.
      padded: See ``padding_mask``.
    """
    mask_of = functools.partial(padding_mask, sizes, padded)

    def intercept(call, args, kwargs, context):
        is_block = isinstance(context.module, _BLOCKS)
        if context.method_name != "__call__" or not (
            is_block or isinstance(context.module, BatchNorm)
        ):
            return call(*args, **kwargs)
        mask = mask_of(args[0])
        return zero_padding(mask, call(*args, **kwargs, **({"mask": mask} if is_block else {})))

    with nn.intercept_methods(intercept):
        yield
