"""The record that describes a source of checkpoints: what a code base calls its arrays.

To read and write the checkpoints of another code base, write a file like ``mmsegmentation.py`` with
a ``Source``, and add that to ``names.SOURCES`` under the name of the network.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# Kinds of modules: name of a leaf in Flax -> (its name in PyTorch, its rank in PyTorch).
Kind = Mapping[str, tuple[str, int]]

CONV: Kind = {"kernel": ("weight", 4), "bias": ("bias", 1)}  # nn.Dense is a 1x1 convolution
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


class Source(NamedTuple):
    """A code base whose checkpoints can be read and written.

    Regular expressions match the beginning of a name in PyTorch.

    Attributes:
      rows: Maps a model config to the table of its modules.
      options: Maps names and shapes to the options of a model config that can be read off them.
        They explain why a checkpoint does not fit.
      backbone: Names in the backbone.
      head: Names in the heads. A checkpoint without any fills the backbone only.
      classifier: Names in the layers that ``reinit_head`` initializes.
      block: Names in blocks inside the backbone. A checkpoint of a backbone may lack all of them.
      renames: (regular expression, replacement) pairs that turn other spellings of a name into the
        one in the table.
    """

    rows: Callable[[Mapping[str, Any]], tuple[Row, ...]]
    options: Callable[[Shapes], dict[str, Any]]
    backbone: str
    head: str
    classifier: str
    block: str
    renames: tuple[tuple[str, str], ...] = ()
