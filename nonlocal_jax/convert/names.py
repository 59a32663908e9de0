"""What a parameter is called in Flax and in PyTorch, and how its axes are laid out in each.

One table for each kind of network says it all; both directions are read off it. A row gives a
module's path in Flax as a regular expression, its name in PyTorch, and its kind, which names the
leaves.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from nonlocal_jax.models import create_model, example_input

# Kinds of modules: leaf in Flax -> (leaf in PyTorch, its rank there). A rank above Flax's is made
# of axes of length one: nn.Dense is a 1x1 convolution there, and mmcv's layer norm acts on
# [C, 1, 1].
_CONV = {"kernel": ("weight", 4), "bias": ("bias", 1)}
_PROJECTION = {"concat_project": ("weight", 4)}
_BATCH_NORM = {
    "scale": ("weight", 1),
    "bias": ("bias", 1),
    "mean": ("running_mean", 1),
    "var": ("running_var", 1),
}
_LAYER_NORM = {"scale": ("weight", 3), "bias": ("bias", 3)}

Row = tuple[str, str, Mapping[str, tuple[str, int]]]

# How mmsegmentation's heads and mmcv's plugins (mmdetection, GCNet) call the blocks.
HEAD_BLOCKS = {
    "nl_block": "nonlocal",
    "dnl_block": "disentangled_nonlocal",
    "gc_block": "global_context",
}
_PLUGINS = {
    "nonlocal": "nonlocal_block",
    "disentangled_nonlocal": "nonlocal_block",
    "global_context": "context_block",
}

_IN_LAYER = r"backbone/layer(\d+)_(\d+)"
_TO_LAYER = r"backbone.layer\1.\2"

_FCN: tuple[Row, ...] = (
    (r"backbone/stem_conv1", "backbone.stem.0", _CONV),
    (r"backbone/stem_bn1", "backbone.stem.1", _BATCH_NORM),
    (r"backbone/stem_conv2", "backbone.stem.3", _CONV),
    (r"backbone/stem_bn2", "backbone.stem.4", _BATCH_NORM),
    (r"backbone/stem_conv3", "backbone.stem.6", _CONV),
    (r"backbone/stem_bn3", "backbone.stem.7", _BATCH_NORM),
    (r"backbone/conv1", "backbone.conv1", _CONV),
    (r"backbone/bn1", "backbone.bn1", _BATCH_NORM),
    (rf"{_IN_LAYER}/(conv[123])", rf"{_TO_LAYER}.\3", _CONV),
    (rf"{_IN_LAYER}/(bn[123])", rf"{_TO_LAYER}.\3", _BATCH_NORM),
    (rf"{_IN_LAYER}/downsample_conv", rf"{_TO_LAYER}.downsample.0", _CONV),
    (rf"{_IN_LAYER}/downsample_bn", rf"{_TO_LAYER}.downsample.1", _BATCH_NORM),
    (r"(\w+_head)/convs_(\d+)/conv", r"\1.convs.\2.conv", _CONV),
    (r"(\w+_head)/convs_(\d+)/bn", r"\1.convs.\2.bn", _BATCH_NORM),
    (r"(\w+_head)/conv_cat/conv", r"\1.conv_cat.conv", _CONV),
    (r"(\w+_head)/conv_cat/bn", r"\1.conv_cat.bn", _BATCH_NORM),
    (r"(\w+_head)/conv_seg", r"\1.conv_seg", _CONV),
)

# Inside a block: behind the block's own path and name.
_GLOBAL_CONTEXT: tuple[Row, ...] = (
    ("/conv_mask", ".conv_mask", _CONV),
    ("/channel_add_conv/conv1", ".channel_add_conv.0", _CONV),
    ("/channel_add_conv/norm", ".channel_add_conv.1", _LAYER_NORM),
    ("/channel_add_conv/conv2", ".channel_add_conv.3", _CONV),
    ("/channel_mul_conv/conv1", ".channel_mul_conv.0", _CONV),
    ("/channel_mul_conv/norm", ".channel_mul_conv.1", _LAYER_NORM),
    ("/channel_mul_conv/conv2", ".channel_mul_conv.3", _CONV),
)
_NON_LOCAL: tuple[Row, ...] = (
    ("/theta", ".theta.conv", _CONV),
    ("/phi", ".phi.conv", _CONV),
    ("/g", ".g.conv", _CONV),
    ("/conv_out", ".conv_out.conv", _CONV),
    ("/norm", ".conv_out.bn", _BATCH_NORM),
    ("/conv_mask", ".conv_mask", _CONV),
    ("", ".concat_project.conv", _PROJECTION),
)
# Where the projection is followed by pooling, mmcv puts both into a sequence.
_POOLED = {"/phi": ".phi.0.conv", "/g": ".g.0.conv"}


def segmentation(config: Mapping[str, Any]) -> tuple[Row, ...]:
    """mmsegmentation's names of FCN, NL, DNL and GC networks, the same in 0.x and 1.x."""
    block = config.get("block", "nonlocal")
    if block == "none":
        return _FCN
    inside = _GLOBAL_CONTEXT if block == "global_context" else _NON_LOCAL
    if config.get("block_sub_sample") in (True, "after"):
        inside = tuple((path, _POOLED.get(path, name), kind) for path, name, kind in inside)
    (in_head,) = (name for name, value in HEAD_BLOCKS.items() if value == block)
    places = (
        (r"decode_head/block", f"decode_head.{in_head}"),
        (rf"{_IN_LAYER}[/_]block", f"{_TO_LAYER}.{_PLUGINS[block]}"),
    )
    blocks = tuple(
        (place + path, torch_place + name, kind)
        for place, torch_place in places
        for path, name, kind in inside
    )
    return _FCN + blocks


# Keys as in ``models.NETWORKS``.
TABLES: dict[str, Callable[[Mapping[str, Any]], tuple[Row, ...]]] = {"segmentation": segmentation}


class Leaf(NamedTuple):
    """One array of a model.

    Attributes:
      path: in Flax, collection first: "params/backbone/layer1_0/conv1/kernel".
      name: in PyTorch: "backbone.layer1.0.conv1.weight".
      shape: in Flax.
      rank: in PyTorch.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    rank: int

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """``shape`` in PyTorch: kernels [*K, I, O] are [O, I, *K] there."""
        shape = self.shape[:-3:-1] + self.shape[:-2] if len(self.shape) > 1 else self.shape
        return shape + (1,) * (self.rank - len(shape))

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """A view in PyTorch's layout."""
        n = array.ndim
        if n > 1:
            array = array.transpose(n - 1, n - 2, *range(n - 2))
        return array.reshape(array.shape + (1,) * (self.rank - n))

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """A view in Flax's layout."""
        n = len(self.shape)
        array = array.reshape(array.shape[:n])
        return array.transpose(*range(2, n), 1, 0) if n > 1 else array


def leaves(config: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """All arrays of the model that ``config`` describes.

    Raises:
      InputError: ``config`` does not describe a model.
    """
    init = create_model(config).init
    variables = jax.eval_shape(init, jax.random.key(0), example_input(config))
    table = TABLES[config.get("network", "segmentation")](config)
    return tuple(
        _leaf(path, value.shape, table) for path, value in flatten_dict(variables, sep="/").items()
    )


def _leaf(path: str, shape: tuple[int, ...], table: tuple[Row, ...]) -> Leaf:
    module, leaf = path.partition("/")[2].rsplit("/", 1)
    for pattern, name, kind in table:
        match = re.fullmatch(pattern, module)
        if match and leaf in kind:
            torch_leaf, rank = kind[leaf]
            return Leaf(path, f"{match.expand(name)}.{torch_leaf}", shape, rank)
    raise LookupError(f"no name for {path} in the table")
