"""Video classification: the experiments of the NL paper, and those of other projects.

    python -m experiments.train --workdir=DIR --config=configs/video.py:nl_i3d_r50_5block_32f

``[nl_]{c2d,i3d}_{r50,r101}_{variant}_{32,128}f`` are the rows of tables 2a to 2g of the NL paper
(arXiv:1711.07971) on Kinetics-400. ``charades_*`` are those of table 4. The variants ``baseline``,
``1block``, ``5block`` and ``10block`` are named after the number of blocks. The others are named
after what they change: the pairwise function of one block (``gaussian``, ``dot_product``,
``concatenation``), the stage of one block (``res2``, ``res3`` and ``res5``, which are stages 1, 2
and 4), the positions that five blocks relate (``space``: those of a frame, ``time``: the same place
in all frames), and the convolutions that are inflated (``3x3x3``). ``ALIASES`` contains second
names of some experiments. ``dnl_*`` and ``gc_*`` have DNL and GC blocks in the places of the five
NL blocks, and the same recipe. Nothing is published for them.

These experiments follow the release of the authors, video-nonlocal-net in Caffe2. The text of the
paper differs from it:

* Paper: conv1 is 7x7x7, pool1 3x3x3 with padding, pool2 3x1x1. Release: conv1 is 1x7x7 (C2D) or
  5x7x7 (I3D), pool1 2x3x3 without padding (maps of 55x55 instead of 56x56 follow), pool2 2x1x1.
* Paper: one convolution is inflated in every two residual blocks. Release: in every one of stage 1.
* Paper: keys are pooled after their projection, logits have no scale, and blocks are initialized as
  the backbone is. Release: keys are pooled before it, logits are divided by the square root of
  their channels, and blocks are initialized with a standard deviation of 0.01.
* Paper: networks are tested on whole frames. Release: on three crops of 256 pixels, as here.
* Paper: a network for 128 frames starts from the same network for 32 frames. Release: from I3D
  without blocks. There, the blocks have no norm, and those in stage 2 attend within groups of 4
  frames. All norms are frozen in both.
* The release has no 3x3x3, no blocks in stages 1 and 4, no Gaussian and concatenation, no space and
  time, no ten blocks in ResNet-101, and no Charades. Here, the six blocks of ResNet-101 in stage 3
  are spread evenly, the time-only blocks pool no keys, and on Charades all norms are frozen.

``[nl_]{c2d,i3d}_r50_{baseline,5block}_8f`` are the networks of the release for 8 frames.
``mmaction2_*`` are those of mmaction2 1.x, ``mit_tsm_*`` those of temporal-shift-module, and
``pyslowfast_*`` those of PySlowFast. ``dense`` means frames that are 8 apart; TSM without it takes
one frame of each of 8 segments. ``pyslowfast_c2d_r50_8f`` has no pool2, as the released network.

``published`` contains the top-1 and top-5 accuracy or the mAP in percent, and the ``protocol`` by
which they were measured. ``released_top1`` and ``released_top5`` are those of the released
``checkpoint`` where the paper has others, with three crops instead of whole frames. ``recipe``
names the source of the recipe, and what differs from it.

An epoch of Kinetics-400 is taken as 240,000 videos, which is 3,750 steps of 64 clips. Training
starts from ImageNet weights (``--init``), except for PySlowFast (random weights), 128 frames (the
network for 32 frames) and Charades (the network for 128 frames).

The demo (``demo_video_*``) trains in minutes on a laptop.
"""

import csv
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from nonlocal_jax.configs import _video_demo
from nonlocal_jax.configs._video import classification_config
from nonlocal_jax.configs.common import unknown_name

Leaves = dict[str, Any]  # config fields by their full names

_EPOCH = 240_000  # videos of Kinetics-400
_GRAY = {"data.mean": (114.75,) * 3, "data.std": (57.375,) * 3}
_NORMS = r"(bn\d?|norm)/"


def _steps(epochs: int, batch_size: int) -> int:
    return epochs * _EPOCH // batch_size


def _step_schedule(epochs: int, drops: tuple[int, ...], batch_size: int, warmup: int = 0) -> Leaves:
    """Returns a schedule in steps, given the epochs in which the learning rate drops to a tenth."""
    return {
        "data.batch_size": batch_size,
        "steps": _steps(epochs, batch_size),
        "schedule.kind": "step",
        "schedule.boundaries": tuple(_steps(drop, batch_size) for drop in drops),
        "schedule.warmup_steps": _steps(warmup, batch_size),
    }


# What differs between the sources. Fields that are missing have the values of `_video.py`. Options
# of blocks count for networks whose blocks have them.
_CAFFE2: Leaves = {
    **_GRAY,
    "recipe": "video-nonlocal-net",
    "model.conv1_stride": 2,
    "model.pool1_frames": 2,
    "model.pool1_stride": 2,
    "model.pool1_padding": 0,
    "model.pool2_frames": 2,
    "model.block_use_scale": True,
    "model.block_sub_sample": "before",
    "model.norm_group_size": 8,
    "data.interval": 2,
    "data.short_side": (256, 320),
    "steps": 400_000,
    "schedule.kind": "step",
    "schedule.boundaries": (150_000, 300_000),
    "optimizer.learning_rate": 0.01,
    "optimizer.nesterov": True,
    "optimizer.no_decay": (_NORMS,),
    "train.precise_batch_norm": 200,
    "evaluation.window": (0, 7, 7),
}
_SOURCES: Mapping[str, Leaves] = {
    "caffe2": _CAFFE2,
    "caffe2_fast": {
        **_CAFFE2,
        "model.conv1_stride": 1,
        "model.pool1_frames": 1,
        "model.pool1_stride": 1,
        "data.interval": 8,
    },
    "mmaction2": {
        "recipe": "mmaction2 1.x; the warm-up rises in every step instead of every epoch",
        "model.block_use_scale": False,
        "model.block_sub_sample": "after",
        "data.long_side": "round",
        "data.crop_scales": (1.0, 0.875, 0.75, 0.66),
        "data.crop_scale_gap": 1,
        "evaluation.starts": "even",
    },
    "mit": {
        "recipe": "temporal-shift-module; batch norm normalizes the global batch",
        "model.block_use_scale": False,
        "model.block_sub_sample": "after",
        "data.crop_scales": (1.0, 0.875, 0.75, 0.66),
        "data.crop_scale_gap": 1,
        "data.crop_positions": 13,
        "optimizer.learning_rate": 0.02,
        "optimizer.clip_global_norm": 20.0,
        "evaluation.average": "logits",
    },
    "pyslowfast": {
        **_GRAY,
        "recipe": "PySlowFast; the warm-up multiplies the cosine; clips of the test start at k/9 "
        "instead of k/10 of the last start",
        "model.pool2_frames": 2,
        "model.block_use_scale": True,
        "model.block_sub_sample": "before",
        "model.norm_group_size": 8,
        "data.interval": 8,
        "data.short_side": (256, 320),
        "steps": _steps(196, 64),
        "schedule.kind": "cosine",
        "schedule.warmup_steps": _steps(34, 64),
        "optimizer.learning_rate": 0.1,
        "optimizer.nesterov": True,
        "optimizer.no_decay": (_NORMS,),
        "train.precise_batch_norm": 200,
        "evaluation.starts": "even",
        "evaluation.window": (0, 7, 7),
    },
}

# What differs between the networks of a source.
_SEGMENTS: Leaves = {
    "data.sampling": "segments",
    "evaluation.clips": 1,
    "evaluation.starts": "segments",
    "evaluation.crop": 224,
}
_RECIPES: Mapping[tuple[str, str], Leaves] = {
    ("mmaction2", "i3d"): {
        **_step_schedule(100, (40, 80), batch_size=64),
        "model.pool1_stride": 2,
        "model.conv1_stride": 2,
        "model.pool2_frames": 2,
        "model.norm_group_size": 8,
        "data.crop_scales": (1.0, 0.8),
        "data.crop_scale_gap": 0,
        "optimizer.learning_rate": 0.01,
        "optimizer.clip_global_norm": 40.0,
    },
    ("mmaction2", "c2d"): {
        **_step_schedule(100, (40, 80), batch_size=256),
        "model.pool1_padding": 0,
        "model.pool2_frames": 2,
        "model.norm_group_size": 32,
        "data.interval": 4,
        "optimizer.learning_rate": 0.01,
        "optimizer.clip_global_norm": 40.0,
        "evaluation.short_side": 224,
        "evaluation.crop": 224,
    },
    ("mmaction2", "tsm"): {
        **_SEGMENTS,
        **_step_schedule(50, (25, 45), batch_size=128, warmup=5),
        "model.norm_group_size": 16,
        "data.crop_positions": 13,
        "optimizer.learning_rate": 0.02,
        "optimizer.clip_global_norm": 20.0,
        "evaluation.crops": 10,
    },
    ("mmaction2", "slowonly"): {
        **_step_schedule(150, (90, 130), batch_size=128, warmup=10),
        "model.norm_group_size": 16,
        "data.interval": 8,
        "data.crop_scales": (),
        "data.crop_scale_gap": 0,
        "data.crop_area": (0.08, 1.0),
        "optimizer.learning_rate": 0.02,
        "optimizer.clip_global_norm": 40.0,
    },
    ("mit", "tsm"): {
        **_SEGMENTS,
        **_step_schedule(50, (20, 40), batch_size=128),
        "evaluation.crops": 1,
    },
    ("mit", "tsm_dense"): {
        "recipe": "temporal-shift-module; batch norm normalizes the global batch; the rate drops "
        "at twice the epochs of the network without dense, because its own are not published; the "
        "clips of the test are spread over 7 more frames",
        **_step_schedule(100, (40, 80), batch_size=128),
        "data.interval": 8,
        "evaluation.starts": "even",
    },
    ("pyslowfast", "c2d"): {"model.pool2_frames": 1},
}

_STAGE_SIZES = {"r50": (3, 4, 6, 3), "r101": (3, 4, 23, 3)}
_FIVE = {
    "r50": ("layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"),
    "r101": ("layer2.1", "layer2.3", "layer3.6", "layer3.13", "layer3.20"),
}
_FIVE_EVEN = ("layer2.0", "layer2.2", "layer3.0", "layer3.2", "layer3.4")
_TEN_IN_STAGE_3 = {"r50": (0, 1, 2, 3, 4, 5), "r101": (3, 6, 10, 13, 17, 20)}


def _places(stage: int, indices: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"layer{stage}.{index}" for index in indices)


def _network(kind: str, depth: str) -> Leaves:
    """Returns what a network is in all sources."""
    sizes = _STAGE_SIZES[depth]
    leaves = {"model.stage_sizes": sizes}
    if kind == "i3d":
        inflated = [range(3), range(0, sizes[1], 2), range(0, sizes[2], 2), (1,)]
        places = [_places(stage, indices) for stage, indices in enumerate(inflated, start=1)]
        leaves |= {"model.conv1_frames": 5, "model.inflate_at": sum(places, ())}
    elif kind == "slowonly":
        places = _places(3, range(sizes[2])) + _places(4, range(sizes[3]))
        leaves |= {"model.inflate_at": places}
    elif kind in ("tsm", "tsm_dense"):
        places = [_places(stage, range(size)) for stage, size in enumerate(sizes, start=1)]
        leaves |= {
            "model.shift_at": sum(places, ()),
            "model.dropout_per_frame": True,
            "model.head_std": 0.001,
            "optimizer.no_decay": ("/scale$", "/bias$"),
            "optimizer.lr_factors": (("classifier/kernel$", 5.0), ("classifier/bias$", 10.0)),
        }
    return leaves


def _base(source: str, network: str, depth: str) -> Leaves:
    return _SOURCES[source] | _network(network, depth) | _RECIPES.get((source, network), {})


_BLOCKS = {"nl": "nonlocal", "dnl": "disentangled_nonlocal", "gc": "global_context"}


def _variant(variant: str, depth: str) -> Leaves:
    """Returns what a variant of the NL paper changes."""
    # A single block is in front of the last residual block of its stage.
    one = {
        f"res{stage + 1}": _places(stage, (size - 2,))
        for stage, size in enumerate(_STAGE_SIZES[depth], start=1)
    }
    ten = _places(2, range(4)) + _places(3, _TEN_IN_STAGE_3[depth])
    if variant in one:
        return {"model.block_at": one[variant]}
    return {
        "baseline": {},
        "3x3x3": {"model.inflate": "3x3x3"},
        "1block": {"model.block_at": one["res4"]},
        "gaussian": {"model.block_at": one["res4"], "model.block_mode": "gaussian"},
        "dot_product": {"model.block_at": one["res4"], "model.block_mode": "dot_product"},
        "concatenation": {"model.block_at": one["res4"], "model.block_mode": "concatenation"},
        "5block": {"model.block_at": _FIVE[depth]},
        "10block": {"model.block_at": ten},
        "space": {"model.block_at": _FIVE[depth], "model.block_axes": "space"},
        "time": {
            "model.block_at": _FIVE[depth],
            "model.block_axes": "time",
            "model.block_sub_sample": False,
        },
    }[variant]


_128_FRAMES: Leaves = {
    "model.norm": "frozen_batch_norm",
    "model.norm_group_size": None,
    "data.batch_size": 16,
    "data.interval": 1,
    "optimizer.learning_rate": 0.0025,
    "optimizer.no_decay": (),
    "optimizer.frozen": (_NORMS,),
    "train.precise_batch_norm": 0,
}
_128_FRAMES_BLOCKS: Leaves = {
    "model.block_norm": "none",
    "model.group_frames": 4,
    "model.group_at": ("layer2.1", "layer2.3"),
}
# The crops and windows of Kinetics-400 at 288 instead of 224 pixels.
_CHARADES: Leaves = {
    **_128_FRAMES,
    "recipe": "NL paper; the numbers of clips and crops of the test are this project's choice",
    "model.num_classes": 157,
    "data.name": "charades",
    "data.batch_size": 8,
    "data.short_side": (329, 411),
    "data.crop": 288,
    "loss.kind": "sigmoid",
    "steps": 200_000,
    "schedule.boundaries": (75_000, 150_000),
    "optimizer.learning_rate": 0.00125,
    "evaluation.short_side": 320,
    "evaluation.crop": 320,
    "evaluation.window": (0, 9, 9),
}
_PAPER = re.compile(
    r"(?P<charades>charades_)?((?P<block>nl|dnl|gc)_)?(?P<network>c2d|i3d)_(?P<depth>r50|r101)"
    r"(_(?P<variant>\w+))?_(?P<frames>8|32|128)f"
)


def _paper(name: str) -> Leaves:
    row = re.fullmatch(_PAPER, name)
    block, network, depth, frames = row["block"], row["network"], row["depth"], int(row["frames"])
    source = "caffe2_fast" if frames == 8 else "caffe2"
    variant = row["variant"] or ("5block" if block else "baseline")
    leaves = {
        **_base(source, network, depth),
        "data.frames": frames,
        "model.block": _BLOCKS.get(block, "none"),
        **_variant(variant, depth),
    }
    if frames == 128:
        leaves |= _CHARADES if row["charades"] else _128_FRAMES
        if block:
            leaves |= _128_FRAMES_BLOCKS
    if block in ("dnl", "gc"):
        leaves["recipe"] = f"this project: that of nl_{name.split('_', 1)[1]} with another block"
    return leaves


# Experiments of other projects: source, network, pairwise function of the blocks, their places.
_OTHERS = {
    "mmaction2_i3d_r50_32f": ("mmaction2", "i3d", None, ()),
    **{
        f"mmaction2_i3d_nl_{mode}_r50_32f": ("mmaction2", "i3d", mode, _FIVE["r50"])
        for mode in ("dot_product", "embedded_gaussian", "gaussian")
    },
    "mmaction2_c2d_r50_16f": ("mmaction2", "c2d", None, ()),
    "mmaction2_tsm_r50_8f": ("mmaction2", "tsm", None, ()),
    **{
        f"mmaction2_tsm_nl_{mode}_r50_8f": ("mmaction2", "tsm", mode, _FIVE_EVEN)
        for mode in ("dot_product", "embedded_gaussian", "gaussian")
    },
    "mmaction2_slowonly_r50_8f": ("mmaction2", "slowonly", None, ()),
    "mmaction2_slowonly_nl_embedded_gaussian_r50_8f": (
        *("mmaction2", "slowonly", "embedded_gaussian", _FIVE_EVEN),
    ),
    "mit_tsm_r50_8f": ("mit", "tsm", None, ()),
    "mit_tsm_dense_r50_8f": ("mit", "tsm_dense", None, ()),
    "mit_tsm_nl_dense_r50_8f": ("mit", "tsm_dense", "embedded_gaussian", _FIVE_EVEN),
    "pyslowfast_c2d_r50_8f": ("pyslowfast", "c2d", None, ()),
    "pyslowfast_i3d_r50_8f": ("pyslowfast", "i3d", None, ()),
    "pyslowfast_i3d_nl_r50_8f": ("pyslowfast", "i3d", "embedded_gaussian", _FIVE["r50"]),
}


def _other(name: str) -> Leaves:
    source, network, mode, block_at = _OTHERS[name]
    leaves = {
        **_base(source, network, "r50"),
        "data.frames": int(name.rsplit("_", 1)[1].removesuffix("f")),
        "model.block": "none" if mode is None else "nonlocal",
        "model.block_at": block_at,
    }
    if mode is not None:
        leaves["model.block_mode"] = mode
        if network.startswith("tsm"):
            leaves["optimizer.lr_factors"] += (("_block/(theta|phi|g)/bias$", 2.0),)
        elif network == "slowonly":
            leaves |= {"model.block_use_scale": True, "optimizer.learning_rate": 0.01}
    return leaves


def _read_published() -> dict[str, dict[str, str]]:
    path = pathlib.Path(__file__).with_name("video_published.csv")
    with path.open(newline="") as file:
        return {row.pop("name"): row for row in csv.DictReader(file)}


_PUBLISHED = _read_published()
_UNPUBLISHED = tuple(
    f"{block}_{network}_{depth}_5block_32f"
    for block in ("dnl", "gc")
    for network in ("c2d", "i3d")
    for depth in ("r50", "r101")
)
_SECOND_NAMES = {
    "_1block_32f": ("_embedded_gaussian_32f", "_res4_32f"),
    "_5block_32f": ("_spacetime_32f",),
    "_baseline_32f": ("_3x1x1_32f",),
}
# Other names of experiments in the tables of the paper.
ALIASES: Mapping[str, str] = {
    name.removesuffix(suffix) + second: name
    for name in _PUBLISHED
    for suffix, seconds in _SECOND_NAMES.items()
    for second in seconds
    if name.endswith(suffix) and not name.startswith("c2d")
}
NAMES: tuple[str, ...] = (*_PUBLISHED, *_UNPUBLISHED, *_video_demo.NAMES)


def get_config(name: str = "nl_i3d_r50_5block_32f") -> ConfigDict:
    """Returns the config of the experiment of this name, one of ``NAMES`` or ``ALIASES``.

    Raises:
      InputError: No experiment has this name. The message contains the most similar name.
    """
    name = ALIASES.get(name, name)
    if name not in NAMES:
        raise unknown_name(name, (*NAMES, *ALIASES))
    if name in _video_demo.NAMES:
        return _video_demo.get_config(name)
    leaves = _other(name) if name in _OTHERS else _paper(name)
    config = classification_config(
        name,
        dataset="kinetics400",
        num_classes=400,
        block=leaves["model.block"],
        steps=leaves["steps"],
        learning_rate=leaves["optimizer.learning_rate"],
        weight_decay=1e-4,
    )
    known = config.to_dict()  # global context blocks have no options of logits and keys
    config.update_from_flattened_dict(
        {
            leaf: value
            for leaf, value in leaves.items()
            if not leaf.startswith("model.block_") or leaf.removeprefix("model.") in known["model"]
        }
    )
    published = {key: text for key, text in _PUBLISHED.get(name, {}).items() if text}
    for key, text in published.items():
        config.published[key] = text if key in ("protocol", "checkpoint") else float(text)
    return config
