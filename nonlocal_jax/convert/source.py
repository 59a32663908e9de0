"""The description of a naming scheme: the names of the arrays in a code base's checkpoints.

To read the checkpoints of another code base, write a module like ``mmsegmentation.py`` with a
``Source``, and add the ``Source`` to ``names.SOURCES`` under the name of the network.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

# Kinds of modules: name of a leaf in Flax -> (its name in PyTorch, its rank in PyTorch).
Kind = Mapping[str, tuple[str, int]]

CONV: Kind = {"kernel": ("weight", 4), "bias": ("bias", 1)}  # nn.Dense is a 1x1 convolution
CONV_3D: Kind = {"kernel": ("weight", 5), "bias": ("bias", 1)}  # has a time axis
LINEAR: Kind = {"kernel": ("weight", 2), "bias": ("bias", 1)}
BATCH_NORM: Kind = {
    "scale": ("weight", 1),
    "bias": ("bias", 1),
    "mean": ("running_mean", 1),
    "var": ("running_var", 1),
}
# mmcv normalizes [C, 1, 1].
LAYER_NORM: Kind = {"scale": ("weight", 3), "bias": ("bias", 3)}

# (regular expression of a module's path in Flax, its name in PyTorch, its kind). The name may refer
# to the groups of the expression as \1, \2. The first row that matches counts.
Row = tuple[str, str, Kind]

# Name in PyTorch -> shape.
Shapes = Mapping[str, tuple[int, ...]]

# Name in PyTorch -> array.
Arrays = Mapping[str, np.ndarray]


def _unchanged(arrays: Arrays, wanted: Shapes) -> Arrays:
    return arrays


def _nothing(config: Mapping[str, Any]) -> dict[str, Any]:
    return {}


class Source(NamedTuple):
    """The naming scheme of a code base whose checkpoints can be read.

    Regular expressions match the beginning of a name in PyTorch.

    Attributes:
      rows: Maps a model config to the table of its modules.
      options: Maps names and shapes to the options of a model config that they determine. Error
        messages use these options to explain why a checkpoint does not fit.
      backbone: Matches names in the backbone.
      head: Matches names in the heads. A checkpoint without such names fills only the backbone.
      classifier: Matches names in the layers that ``reinit_head`` initializes.
      block: Matches names in blocks, which ``new_blocks`` initializes. A checkpoint of a backbone
        may lack all of them.
      renames: (regular expression, replacement) pairs that turn other spellings of a name into the
        one in the table.
      separator: What joins the names of a module and of its array.
      adapt: Maps the arrays of a checkpoint, and the names and shapes of the model, to the arrays
        of the same function with the names in the table.
      lacking: Maps a model config to those of its options that no network of the code base has,
        although the names would be the same. Such a model is not exported, and its blocks are not
        read from a file of the code base.
    """

    rows: Callable[[Mapping[str, Any]], tuple[Row, ...]]
    options: Callable[[Shapes], dict[str, Any]]
    backbone: str
    head: str
    classifier: str
    block: str
    renames: tuple[tuple[str, str], ...] = ()
    separator: str = "."
    adapt: Callable[[Arrays, Shapes], Arrays] = _unchanged
    lacking: Callable[[Mapping[str, Any]], dict[str, Any]] = _nothing


def stage_sizes(blocks: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Returns the number of residual blocks in each stage, from their (stage, index)."""
    sizes: dict[int, int] = {}
    for stage, index in blocks:
        sizes[stage] = max(sizes.get(stage, 0), index + 1)
    return tuple(sizes[stage] for stage in sorted(sizes))


def video_options(
    shapes: Shapes,
    *,
    conv: str,
    block: str,
    norm: str,
    classifier: str | None = None,
    first_stage: int = 1,
) -> dict[str, Any]:
    """Returns the options of a video network that names and shapes determine.

    Args:
      shapes: Names and shapes.
      conv: Matches the weights of the first two convolutions of a residual block. The groups are
        the stage, the index, and the name of the convolution, which ends in 1 or a for the first.
      block: Matches the weight of g in a block. The groups are the stage and the index.
      norm: Matches the scale of the norm in a block.
      classifier: Name of the weight of the classifier. None if it is not read.
      first_stage: Number of the first stage.
    """
    sizes, inflated, kinds, block_at = [], set(), set(), set()
    for name, shape in shapes.items():
        if match := re.fullmatch(conv, name):
            stage, index = int(match[1]) - first_stage + 1, int(match[2])
            sizes.append((stage, index))
            if len(shape) == 5 and shape[2] > 1:
                inflated.add(f"layer{stage}.{index}")
                kinds.add("3x1x1" if match[3][-1] in "1a" else "3x3x3")
        elif match := re.fullmatch(block, name):
            block_at.add(f"layer{int(match[1]) - first_stage + 1}.{match[2]}")
    options = {"stage_sizes": stage_sizes(sizes), "inflate_at": tuple(sorted(inflated))}
    if len(kinds) == 1:
        options["inflate"] = kinds.pop()
    options |= {"block": "nonlocal" if block_at else "none", "block_at": tuple(sorted(block_at))}
    if block_at:
        has_norm = any(re.fullmatch(norm, name) for name in shapes)
        options["block_norm"] = "batch_norm" if has_norm else "none"
    if classifier in shapes:
        options["num_classes"] = shapes[classifier][0]
    return options


def fold_biases(arrays: Arrays, wanted: Shapes, bias: str, mean: str) -> dict[str, np.ndarray]:
    """Folds biases in front of norms into the running means: norm(x + bias) of mean - bias.

    The statistics of a batch contain the bias too. So the fold is exact in training, where the bias
    has no gradient.

    Args:
      arrays: Arrays by name.
      wanted: Shapes of the model. A bias with a name of the model is not folded, nor is one of a
        mean with another shape.
      bias: Matches the names of the biases.
      mean: Replacement of ``bias`` that gives the name of the running mean.
    """
    arrays = dict(arrays)
    for name in [name for name in arrays if name not in wanted and re.fullmatch(bias, name)]:
        target = re.sub(bias, mean, name)
        pair = [arrays[n] for n in (target, name) if n in arrays]
        floating = all(jnp.issubdtype(x.dtype, jnp.floating) for x in pair)
        shapes = {x.shape for x in pair}
        if len(pair) == 2 and floating and shapes == {wanted.get(target)}:
            arrays[target] = np.subtract(*(np.float64(x) for x in pair))
            del arrays[name]
    return arrays
