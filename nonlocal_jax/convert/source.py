"""The description of a naming scheme: the names of the arrays in a code base's checkpoints.

To read and write the checkpoints of another code base, write a module like ``mmsegmentation.py``
with a ``Source``, and add the ``Source`` to ``names.SOURCES`` under the name of the network.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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


class Source(NamedTuple):
    """The naming scheme of a code base whose checkpoints can be read and written.

    Regular expressions match the beginning of a name in PyTorch.

    Attributes:
      rows: Maps a model config to the table of its modules.
      options: Maps names and shapes to the options of a model config that they determine. Error
        messages use these options to explain why a checkpoint does not fit.
      backbone: Matches names in the backbone.
      head: Matches names in the heads. A checkpoint without such names fills only the backbone.
      classifier: Matches names in the layers that ``reinit_head`` initializes.
      block: Matches names in blocks inside the backbone. A checkpoint of a backbone may lack all of
        them.
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
