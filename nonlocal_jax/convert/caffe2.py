"""The names in the Caffe2 networks of the NL paper's authors, and in their ImageNet networks."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from nonlocal_jax.convert.source import (
    Arrays,
    Kind,
    Row,
    Shapes,
    Source,
    fold_biases,
    video_options,
)
from nonlocal_jax.layers import BatchNorm

_CONV: Kind = {"kernel": ("w", 5), "bias": ("b", 1)}
_LINEAR: Kind = {"kernel": ("w", 2), "bias": ("b", 1)}
# "riv" is the running variance, although its name says inverse.
_NORM: Kind = {"scale": ("s", 1), "bias": ("b", 1), "mean": ("rm", 1), "var": ("riv", 1)}


def _rows(config: Mapping[str, Any]) -> tuple[Row, ...]:
    rows: list[Row] = [
        (r"backbone/conv1", "conv1", _CONV),
        (r"backbone/bn1", "res_conv1_bn", _NORM),
        (r"classifier", "pred", _LINEAR),
    ]
    for stage in range(1, len(config.get("stage_sizes", range(4))) + 1):
        path, residual = rf"backbone/layer{stage}_(\d+)", rf"res{stage + 1}_\1"
        block = rf"nonlocal_conv{stage + 1}_\1"
        for number, letter in enumerate("abc", start=1):
            branch = f"{residual}_branch2{letter}"
            rows.append((rf"{path}/conv{number}", branch, _CONV))
            rows.append((rf"{path}/bn{number}", f"{branch}_bn", _NORM))
        rows += [
            (rf"{path}/downsample_conv", f"{residual}_branch1", _CONV),
            (rf"{path}/downsample_bn", f"{residual}_branch1_bn", _NORM),
            (rf"{path}_block/(theta|phi|g)", rf"{block}_\2", _CONV),
            (rf"{path}_block/conv_out", f"{block}_out", _CONV),
            (rf"{path}_block/norm", f"{block}_bn", _NORM),
        ]
    return tuple(rows)


def _adapt(arrays: Arrays, wanted: Shapes) -> Arrays:
    """Drops what only training needs, and rewrites norms and the classifier."""
    kept = {
        name: array
        for name, array in arrays.items()
        if not name.endswith("_momentum") and name not in ("model_iter", "lr", "epoch")
    }
    if not any(name.endswith("_riv") for name in kept):
        kept = _with_statistics(kept)
    weight = kept.get("pred_w")
    if weight is not None and all(n == 1 for n in weight.shape[2:]):  # a convolution
        kept["pred_w"] = weight.reshape(weight.shape[:2])
    return fold_biases(kept, wanted, r"(nonlocal_conv\d+_\d+)_out_b", r"\1_bn_rm")


def _with_statistics(arrays: Arrays) -> dict[str, np.ndarray]:
    """Adds the statistics that make the norms of "affine" files compute only scale * x + bias."""
    statistics = {}
    for name, array in arrays.items():
        if name.endswith("_bn_s"):
            norm = name.removesuffix("s")
            # Views, which need no memory whatever shape a file claims.
            statistics[f"{norm}rm"] = np.broadcast_to(0.0, array.shape)
            statistics[f"{norm}riv"] = np.broadcast_to(1 - BatchNorm.epsilon, array.shape)
    return {**arrays, **statistics}


SOURCE = Source(
    rows=_rows,
    options=functools.partial(
        video_options,
        conv=r"res(\d+)_(\d+)_branch2([ab])_w",
        block=r"nonlocal_conv(\d+)_(\d+)_g_w",
        norm=r"nonlocal_conv\d+_\d+_bn_s",
        classifier="pred_w",
        first_stage=2,
    ),
    backbone=r"(conv1_|res|nonlocal_conv)",
    head=r"pred_",
    classifier=r"pred_",
    block=r"nonlocal_conv",
    separator="_",
    adapt=_adapt,
)
