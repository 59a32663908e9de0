"""The names in the checkpoints of TSM's authors (MIT), with and without non-local blocks."""

import re
from collections.abc import Mapping
from typing import Any

from nonlocal_jax.convert import mmaction2
from nonlocal_jax.convert.source import (
    BATCH_NORM,
    CONV,
    CONV_3D,
    LINEAR,
    Arrays,
    Row,
    Shapes,
    Source,
    fold_biases,
    video_options,
)
from nonlocal_jax.convert.torchvision import residual_rows


def _rows(config: Mapping[str, Any]) -> tuple[Row, ...]:
    return (
        (r"backbone/conv1", "base_model.conv1", CONV),
        (r"backbone/bn1", "base_model.bn1", BATCH_NORM),
        (r"classifier", "new_fc", LINEAR),
        *(row for place in config.get("shift_at", ()) for row in _shifted(place, config)),
        *(row for place in config.get("block_at", ()) for row in _with_block(place, config)),
        *residual_rows(r"backbone/layer(\d+)_(\d+)", r"base_model.layer\1.\2"),
    )


def _path(place: str) -> str:
    return f"backbone/{place.replace('.', '_')}"


def _residual(place: str, config: Mapping[str, Any]) -> str:
    """Returns the name of a residual block, which a module with the non-local block may contain."""
    return f"base_model.{place}" + (".block" if place in config.get("block_at", ()) else "")


def _shifted(place: str, config: Mapping[str, Any]) -> tuple[Row, ...]:
    return ((rf"{_path(place)}/conv1", f"{_residual(place, config)}.conv1.net", CONV),)


def _with_block(place: str, config: Mapping[str, Any]) -> tuple[Row, ...]:
    block = f"base_model.{place}.nl"
    # A projection and the pooling behind it are a sequence.
    pool = ".0" if config.get("block_sub_sample") in (True, "after") else ""
    return (
        *residual_rows(_path(place), _residual(place, config)),
        (rf"{_path(place)}_block/theta", f"{block}.theta", CONV_3D),
        (rf"{_path(place)}_block/(phi|g)", rf"{block}.\1{pool}", CONV_3D),
        (rf"{_path(place)}_block/conv_out", f"{block}.W.0", CONV_3D),
        (rf"{_path(place)}_block/norm", f"{block}.W.1", BATCH_NORM),
    )


def _adapt(arrays: Arrays, wanted: Shapes) -> Arrays:
    return fold_biases(arrays, wanted, r"(.*\.nl\.W)\.0\.bias", r"\1.1.running_mean")


def _options(shapes: Shapes) -> dict[str, Any]:
    options = video_options(
        shapes,
        conv=r"base_model\.layer(\d+)\.(\d+)\.(?:block\.)?(conv[12])\.(?:net\.)?weight",
        block=r"base_model\.layer(\d+)\.(\d+)\.nl\.g\.(?:0\.)?weight",
        norm=r".*\.nl\.W\.1\.weight",
        classifier="new_fc.weight",
    )
    shifted = r"^base_model\.(layer\d+\.\d+)\..*\bnet\.weight$"
    places = re.findall(shifted, "\n".join(shapes), re.MULTILINE)
    return options | {"shift_at": tuple(sorted(places))}


SOURCE = Source(
    rows=_rows,
    options=_options,
    backbone=r"base_model\.",
    head=r"new_fc\.",
    classifier=r"new_fc\.",
    block=r"base_model\.layer\d+\.\d+\.nl\.",
    adapt=_adapt,
    lacking=mmaction2.lacking,
)
