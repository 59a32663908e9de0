"""The names in PySlowFast's C2D and I3D networks, with and without non-local blocks."""

import functools
from collections.abc import Mapping
from typing import Any

from nonlocal_jax.convert.source import (
    BATCH_NORM,
    CONV_3D,
    LINEAR,
    Arrays,
    Row,
    Shapes,
    Source,
    fold_biases,
    video_options,
)


def _rows(config: Mapping[str, Any]) -> tuple[Row, ...]:
    rows: list[Row] = [
        (r"backbone/conv1", "s1.pathway0_stem.conv", CONV_3D),
        (r"backbone/bn1", "s1.pathway0_stem.bn", BATCH_NORM),
        (r"classifier", "head.projection", LINEAR),
    ]
    for stage in range(1, len(config.get("stage_sizes", range(4))) + 1):
        path = rf"backbone/layer{stage}_(\d+)"
        residual = rf"s{stage + 1}.pathway0_res\1"
        block = rf"s{stage + 1}.pathway0_nonlocal\1"
        for number, letter in enumerate("abc", start=1):
            branch = f"{residual}.branch2.{letter}"
            rows.append((rf"{path}/conv{number}", branch, CONV_3D))
            rows.append((rf"{path}/bn{number}", f"{branch}_bn", BATCH_NORM))
        rows += [
            (rf"{path}/downsample_conv", f"{residual}.branch1", CONV_3D),
            (rf"{path}/downsample_bn", f"{residual}.branch1_bn", BATCH_NORM),
            (rf"{path}_block/(theta|phi|g)", rf"{block}.conv_\2", CONV_3D),
            (rf"{path}_block/conv_out", f"{block}.conv_out", CONV_3D),
            (rf"{path}_block/norm", f"{block}.bn", BATCH_NORM),
        ]
    return tuple(rows)


def _adapt(arrays: Arrays, wanted: Shapes) -> Arrays:
    bias = r"(s\d+\.pathway0_nonlocal\d+)\.conv_out\.bias"
    return fold_biases(arrays, wanted, bias, r"\1.bn.running_mean")


SOURCE = Source(
    rows=_rows,
    options=functools.partial(
        video_options,
        conv=r"s(\d+)\.pathway0_res(\d+)\.branch2\.([ab])\.weight",
        block=r"s(\d+)\.pathway0_nonlocal(\d+)\.conv_g\.weight",
        norm=r"s\d+\.pathway0_nonlocal\d+\.bn\.weight",
        classifier="head.projection.weight",
        first_stage=2,
    ),
    backbone=r"s\d+\.",
    head=r"head\.",
    classifier=r"head\.projection\.",
    block=r"s\d+\.pathway0_nonlocal\d+\.",
    adapt=_adapt,
)
