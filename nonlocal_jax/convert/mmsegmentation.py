"""The names in mmsegmentation's FCN, NL, DNL and GC networks. They are the same in 0.x and 1.x.

Blocks in the backbone have the names of mmcv's plugins, as in mmdetection and GCNet.
"""

import re
from collections.abc import Mapping
from typing import Any

from nonlocal_jax.convert.source import (
    BATCH_NORM,
    CONV,
    LAYER_NORM,
    Row,
    Shapes,
    Source,
    stage_sizes,
)

# Block -> its name in the decode head, and as a plugin in the backbone.
_BLOCKS = {
    "nonlocal": ("nl_block", "nonlocal_block"),
    "disentangled_nonlocal": ("dnl_block", "nonlocal_block"),
    "global_context": ("gc_block", "context_block"),
}

_IN_LAYER = r"backbone/layer(\d+)_(\d+)"
_TO_LAYER = r"backbone.layer\1.\2"

_FCN: tuple[Row, ...] = (
    (r"backbone/stem_conv1", "backbone.stem.0", CONV),
    (r"backbone/stem_bn1", "backbone.stem.1", BATCH_NORM),
    (r"backbone/stem_conv2", "backbone.stem.3", CONV),
    (r"backbone/stem_bn2", "backbone.stem.4", BATCH_NORM),
    (r"backbone/stem_conv3", "backbone.stem.6", CONV),
    (r"backbone/stem_bn3", "backbone.stem.7", BATCH_NORM),
    (r"backbone/conv1", "backbone.conv1", CONV),
    (r"backbone/bn1", "backbone.bn1", BATCH_NORM),
    (rf"{_IN_LAYER}/(conv[123])", rf"{_TO_LAYER}.\3", CONV),
    (rf"{_IN_LAYER}/(bn[123])", rf"{_TO_LAYER}.\3", BATCH_NORM),
    (rf"{_IN_LAYER}/downsample_conv", rf"{_TO_LAYER}.downsample.0", CONV),
    (rf"{_IN_LAYER}/downsample_bn", rf"{_TO_LAYER}.downsample.1", BATCH_NORM),
    (r"(\w+_head)/convs_(\d+)/conv", r"\1.convs.\2.conv", CONV),
    (r"(\w+_head)/convs_(\d+)/bn", r"\1.convs.\2.bn", BATCH_NORM),
    (r"(\w+_head)/conv_cat/conv", r"\1.conv_cat.conv", CONV),
    (r"(\w+_head)/conv_cat/bn", r"\1.conv_cat.bn", BATCH_NORM),
    (r"(\w+_head)/conv_seg", r"\1.conv_seg", CONV),
)

# The modules of a block, relative to it.
_GLOBAL_CONTEXT: tuple[Row, ...] = (
    ("conv_mask", "conv_mask", CONV),
    ("channel_add_conv/conv1", "channel_add_conv.0", CONV),
    ("channel_add_conv/norm", "channel_add_conv.1", LAYER_NORM),
    ("channel_add_conv/conv2", "channel_add_conv.3", CONV),
    ("channel_mul_conv/conv1", "channel_mul_conv.0", CONV),
    ("channel_mul_conv/norm", "channel_mul_conv.1", LAYER_NORM),
    ("channel_mul_conv/conv2", "channel_mul_conv.3", CONV),
)
_NON_LOCAL: tuple[Row, ...] = (
    ("theta", "theta.conv", CONV),
    ("phi", "phi.conv", CONV),
    ("g", "g.conv", CONV),
    ("conv_out", "conv_out.conv", CONV),
    ("norm", "conv_out.bn", BATCH_NORM),
    ("conv_mask", "conv_mask", CONV),
    ("", "concat_project.conv", {"concat_project": ("weight", 4)}),
)
# mmcv puts a projection and the pooling behind it into a sequence.
_POOLED = {"phi": "phi.0.conv", "g": "g.0.conv"}
# The disentangled block in its authors' code.
_FACTOR: tuple[Row, ...] = (
    ("theta", "conv_query", CONV),
    ("phi", "conv_key", CONV),
    ("g", "conv_value", CONV),
    ("conv_mask", "conv_mask", CONV),
    ("", "", {"gamma": ("gamma", 1)}),
)

# The convolutions to the C channels of a block. Each block has at least one.
BLOCK_OUTPUTS = ("conv_out.conv", "conv_value", "channel_add_conv.3", "channel_mul_conv.3")


def block_rows(
    block: str, sub_sample: object = False, output: object = "projection"
) -> tuple[Row, ...]:
    """Returns the table of one block's modules, with names relative to the block.

    Args:
      block: A key of ``models.BLOCKS``.
      sub_sample: Attribute of a non-local block.
      output: Attribute of a disentangled block.
    """
    if block == "global_context":
        return _GLOBAL_CONTEXT
    if output == "factor":
        return _FACTOR
    pooled = _POOLED if sub_sample in (True, "after") else {}
    return tuple((path, pooled.get(path, name), kind) for path, name, kind in _NON_LOCAL)


def lacking(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``block_sub_sample`` if mmcv's and the DNL authors' blocks do not pool like this."""
    sub_sample = config.get("block_sub_sample", False)
    unknown = (True, "after") if config.get("block_output") == "factor" else ("before",)
    return {"block_sub_sample": sub_sample} if sub_sample in unknown else {}


def _rows(config: Mapping[str, Any]) -> tuple[Row, ...]:
    block = config.get("block", "nonlocal")
    if block == "none":
        return _FCN
    options = {k: config[f"block_{k}"] for k in ("sub_sample", "output") if f"block_{k}" in config}
    in_head, in_backbone = _BLOCKS[block]
    places = (
        (r"decode_head/block", f"decode_head.{in_head}"),
        (rf"{_IN_LAYER}[/_]block", f"{_TO_LAYER}.{in_backbone}"),
    )
    return _FCN + tuple(
        (f"{place}/{path}".rstrip("/"), f"{torch_place}.{name}".rstrip("."), kind)
        for place, torch_place in places
        for path, name, kind in block_rows(block, **options)
    )


def _options(shapes: Shapes) -> dict[str, Any]:
    names = "\n".join(shapes)
    options = {}
    if layers := re.findall(r"^backbone\.layer(\d+)\.(\d+)\.", names, re.MULTILINE):
        options["stage_sizes"] = stage_sizes((int(stage), int(index)) for stage, index in layers)
        options["stem"] = "v1c" if "backbone.stem." in names else "v1"
        inserted = re.findall(r"^backbone\.(layer\d+\.\d+)\.\w+_block\.", names, re.MULTILINE)
        options["block_at"] = tuple(sorted(set(inserted)))
    if "decode_head." in names:
        in_head = [b for b, (name, _) in _BLOCKS.items() if f"decode_head.{name}." in names]
        options["block"] = in_head[0] if in_head else _block_in_backbone(names)
        if options["block"] != "none":
            options["block_in_head"] = bool(in_head)
    for option, name in (
        ("num_classes", "decode_head.conv_seg.weight"),
        ("head_channels", "decode_head.convs.0.conv.weight"),
        ("auxiliary_channels", "auxiliary_head.convs.0.conv.weight"),
    ):
        if name in shapes:
            options[option] = shapes[name][0]
    return options


def _block_in_backbone(names: str) -> str:
    if ".context_block." in names:
        return "global_context"
    if ".nonlocal_block.conv_mask." in names:
        return "disentangled_nonlocal"
    return "nonlocal" if ".nonlocal_block." in names else "none"


SOURCE = Source(
    rows=_rows,
    options=_options,
    backbone=r"backbone\.",
    head=r"(decode|auxiliary)_head\.",
    classifier=r"(decode|auxiliary)_head\.conv_seg\.",
    block=r"(backbone\.layer\d+\.\d+|decode_head)\.\w+_block\.",
    # A backbone that was saved without a network around it, as ImageNet classifiers are.
    renames=((r"(stem|conv1|bn1|layer\d+)\.", r"backbone.\g<0>"),),
    lacking=lacking,
)
