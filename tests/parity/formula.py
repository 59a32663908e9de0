"""Weights and images from a formula of name and shape, the same everywhere and forever.

Element k of the array called ``name`` is uniform in [0, 1): the top 53 bits of splitmix64 of
k + 2**32 * crc32(name). Only integers, so no version of a library changes them.
"""

import re
import zlib
from collections.abc import Mapping

import numpy as np

# mmaction2's norms whose sum a residual block returns. The products of its non-local blocks are not
# divided, so that large features would leave one key for each query.
_SMALL = re.compile(r"\.(conv3|downsample|non_local_block\.conv_out)\.bn\.")


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 in [0, 1)."""
    with np.errstate(over="ignore"):
        z = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint64)
        z = z + np.uint64(zlib.crc32(name.encode()) << 32) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)) * 2.0**-53).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A value for one entry of a PyTorch state dict, float32.

    Nothing is zero or one, so that no identity hides a mistake, and activations keep their scale
    through a hundred layers: kernels have variance gain**2 / fan_in, the last norm of a residual
    branch is small, the logits of an attention are of order one.
    """
    u = uniform(name, shape)
    symmetric = 2 * u - 1
    of_norm = len(shape) == 1 or "channel_add_conv.1." in name
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var") or (name.endswith("weight") and of_norm):
        value = 0.5 + u
        if ".bn3." in name:
            value = 0.15 * value
        elif name.endswith("weight") and _SMALL.search(name):
            value = 0.06 * value
    elif name.endswith("weight"):
        gain = 1.2
        if "dnl_block.theta" in name or "dnl_block.phi" in name:
            gain = 0.4  # the temperature multiplies their product by 20
        elif re.search(r"non_local_block\.(theta|phi)", name):
            gain = 5.0  # the features there are small, see below
        fan_in = np.prod(shape[1:], dtype=np.int64)
        value = symmetric * gain * (3 / fan_in) ** 0.5
    else:
        value = 0.1 * symmetric
    return value.astype(np.float32)


def state_dict(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """``weight`` of every entry."""
    return {name: weight(name, tuple(shape)) for name, shape in shapes.items()}


def images(batch: int, height: int, width: int) -> np.ndarray:
    """Normalized images ``[B, H, W, 3]``, float64: coarse blotches and fine noise."""
    coarse = uniform("coarse", (batch, -(-height // 16), -(-width // 16), 3))
    coarse = np.repeat(np.repeat(coarse, 16, axis=1), 16, axis=2)[:, :height, :width]
    return 3 * (coarse - 0.5) + uniform("fine", (batch, height, width, 3)) - 0.5


def clips(batch: int, frames: int, height: int, width: int) -> np.ndarray:
    """Normalized clips ``[B, T, H, W, 3]``, float64: images that are not alike."""
    return images(batch * frames, height, width).reshape(batch, frames, height, width, 3)


def image_uint8(height: int, width: int) -> np.ndarray:
    """An image ``[H, W, 3]``, uint8."""
    return (128 + 50 * images(1, height, width)[0]).clip(0, 255).astype(np.uint8)


def labels(batch: int, height: int, width: int, classes: int) -> np.ndarray:
    """Labels ``[B, H, W]``, uint8, a tenth of them 255."""
    value = (uniform("label", (batch, height, width)) * classes).astype(np.uint8)
    return np.where(uniform("ignored", value.shape) < 0.1, np.uint8(255), value)
