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
from collections.abc import Mapping

from ml_collections import ConfigDict

from nonlocal_jax.configs import _video_demo
from nonlocal_jax.configs._video import classification_config
from nonlocal_jax.configs._video_sources import (
    NORMS,
    STAGE_SIZES,
    Leaves,
    places_of,
    source_leaves,
)
from nonlocal_jax.configs.common import unknown_name

_FIVE = {
    "r50": ("layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"),
    "r101": ("layer2.1", "layer2.3", "layer3.6", "layer3.13", "layer3.20"),
}
_FIVE_EVEN = ("layer2.0", "layer2.2", "layer3.0", "layer3.2", "layer3.4")
_TEN_IN_STAGE_3 = {"r50": (0, 1, 2, 3, 4, 5), "r101": (3, 6, 10, 13, 17, 20)}
_BLOCKS = {"nl": "nonlocal", "dnl": "disentangled_nonlocal", "gc": "global_context"}


def _variant(variant: str, depth: str) -> Leaves:
    """Returns what a variant of the NL paper changes."""
    # A single block is in front of the last residual block of its stage.
    one = {
        f"res{stage + 1}": places_of(stage, (size - 2,))
        for stage, size in enumerate(STAGE_SIZES[depth], start=1)
    }
    ten = places_of(2, range(4)) + places_of(3, _TEN_IN_STAGE_3[depth])
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
    "optimizer.frozen": (NORMS,),
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
        **source_leaves(source, network, depth),
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
        **source_leaves(source, network, "r50"),
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
