"""The names in mmaction2's C2D, I3D, SlowOnly, TSM and non-local networks, the same in 0.x and 1.x.

Networks with convolutions over frames are mmaction2's ``ResNet3d``: all of their kernels have a
time axis. C2D and TSM have kernels for images, and only their non-local blocks have a time axis.
TSM wraps a shifted convolution in ``.net``, and the other modules of a residual block that is
followed by a non-local block in ``.block``.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from nonlocal_jax.convert import mmsegmentation
from nonlocal_jax.convert.source import BATCH_NORM, CONV, CONV_3D, LINEAR, Kind, Row, Shapes, Source

# DNL and GC blocks are not in mmaction2. They have the names of mmcv's blocks.
_BLOCKS = {
    "nonlocal": "non_local_block",
    "disentangled_nonlocal": "non_local_block",
    "global_context": "context_block",
}


def _is_3d(config: Mapping[str, Any]) -> bool:
    """Returns whether a network is a ``ResNet3d``."""
    over_frames = any(config.get(f"conv1_{name}", 1) > 1 for name in ("frames", "stride"))
    has_blocks = config.get("block", "none") != "none" and not config.get("shift_at")
    return over_frames or bool(config.get("inflate_at")) or has_blocks


def lacking(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a network that no network of mmaction2 has."""
    is_c2d = not _is_3d(config) and not config.get("shift_at")
    known = {
        "pool1_frames": (1,),
        "pool1_padding": (0, 1) if is_c2d else (1,),
        "shift": ("both",),
        "group_frames": (None,),
        "block_axes": ("spacetime",),
    }
    return mmsegmentation.lacking(config) | {
        name: config[name]
        for name, values in known.items()
        if name in config and config[name] not in values
    }


def _rows(config: Mapping[str, Any]) -> tuple[Row, ...]:
    block, shifted = config.get("block", "none"), config.get("shift_at", ())
    conv = CONV_3D if _is_3d(config) else CONV
    wrapped = config.get("block_at", ()) if shifted else ()
    rows = (
        ("backbone/conv1", "backbone.conv1.conv", conv),
        ("backbone/bn1", "backbone.conv1.bn", BATCH_NORM),
        *_residual_blocks(wrapped, r"backbone.layer\1.\2.block", shifted, conv),
        *_residual_blocks(None, r"backbone.layer\1.\2", shifted, conv),
        ("classifier", "cls_head.fc_cls", LINEAR),
    )
    if block == "none":
        return rows
    options = {k: config[f"block_{k}"] for k in ("sub_sample", "output") if f"block_{k}" in config}
    return rows + tuple(
        (
            rf"backbone/layer(\d+)_(\d+)_block/{path}".rstrip("/"),
            rf"backbone.layer\1.\2.{_BLOCKS[block]}.{name}".rstrip("."),
            CONV_3D if kind is CONV else kind,
        )
        for path, name, kind in mmsegmentation.block_rows(block, **options)
    )


def _residual_blocks(
    places: Collection[str] | None, name: str, shifted: Collection[str], conv: Kind
) -> tuple[Row, ...]:
    """The table of the residual blocks at some places, or at all places if ``places`` is None."""
    some, layer = "" if places is None else _at(places), r"backbone/layer(\d+)_(\d+)"
    return (
        (rf"{some}{_at(shifted)}{layer}/conv1", f"{name}.conv1.conv.net", conv),
        (rf"{some}{layer}/(conv[123])", rf"{name}.\3.conv", conv),
        (rf"{some}{layer}/bn([123])", rf"{name}.conv\3.bn", BATCH_NORM),
        (rf"{some}{layer}/downsample_(conv)", rf"{name}.downsample.\3", conv),
        (rf"{some}{layer}/downsample_(bn)", rf"{name}.downsample.\3", BATCH_NORM),
    )


def _at(places: Collection[str]) -> str:
    """A lookahead that matches the paths of residual blocks at these places."""
    return rf"(?=backbone/(?:{'|'.join(place.replace('.', '_') for place in places)})/)"


def _options(shapes: Shapes) -> dict[str, Any]:
    names = "\n".join(shapes)

    def places(pattern: str) -> tuple[str, ...]:
        found = re.findall(rf"^backbone\.(layer\d+\.\d+)\.{pattern}", names, re.MULTILINE)
        return tuple(sorted(set(found)))

    def frames(name: str) -> int:
        shape = shapes.get(f"backbone.{name}.conv.weight", ())
        return shape[2] if len(shape) == len("OITHW") else 1

    options: dict[str, Any] = {}
    if residual_blocks := places(""):
        stages = [place.partition(".")[0] for place in residual_blocks]
        options["stage_sizes"] = tuple(stages.count(stage) for stage in sorted(set(stages)))
        options["conv1_frames"] = frames("conv1")
        options["inflate_at"] = ()
        for convolution, inflate in (("conv1", "3x1x1"), ("conv2", "3x3x3")):
            inflated = [place for place in residual_blocks if frames(f"{place}.{convolution}") > 1]
            if inflated:
                options["inflate"], options["inflate_at"] = inflate, tuple(inflated)
        options["shift_at"] = places(r"(?:block\.)?conv1\.conv\.net\.")
        options["block_at"] = places(r"\w+_block\.")
        options["block"] = _block(names)
        if ".non_local_block." in names:
            has_norm = ".non_local_block.conv_out.bn." in names
            options["block_norm"] = "batch_norm" if has_norm else "none"
    if "cls_head.fc_cls.weight" in shapes:
        options["num_classes"] = shapes["cls_head.fc_cls.weight"][0]
    return options


def _block(names: str) -> str:
    if ".context_block." in names:
        return "global_context"
    if ".non_local_block.conv_mask." in names:
        return "disentangled_nonlocal"
    return "nonlocal" if ".non_local_block." in names else "none"


SOURCE = Source(
    rows=_rows,
    options=_options,
    backbone=r"backbone\.",
    head=r"cls_head\.",
    classifier=r"cls_head\.",
    block=r"backbone\.layer\d+\.\d+\.\w+_block\.",
    lacking=lacking,
)
