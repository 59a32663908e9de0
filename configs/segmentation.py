"""Semantic segmentation: the published rows of NL, DNL and GC networks, and the demo.

    python -m experiments.train --workdir=DIR \\
        --config=configs/segmentation.py:nonlocal_r50-d8_512x1024_40k_cityscapes

A row is head x backbone x crop x schedule x dataset, and its name says so. The recipe is that of
mmsegmentation 0.x, which all published checkpoints were trained with: SGD with weight decay on
every parameter, one learning rate for batch 8 and 16, no warm-up. ``published`` holds the reported
mIoU in percent, at a single scale and with multiple scales and flip, on Cityscapes val, ADE20K val
and VOC 2012 val. The demo (``demo_*``) trains in minutes on a laptop.
"""

import csv
import difflib
import pathlib

from ml_collections import ConfigDict

_HEADS = {"nonlocal": "nonlocal", "dnl": "disentangled_nonlocal", "gcnet": "global_context"}
_BLOCK_OPTIONS = {
    "nonlocal": {
        "block_mode": "embedded_gaussian",
        "block_reduction": 2,
        "block_use_scale": True,
        "block_sub_sample": False,
        "block_implementation": "auto",
    },
    "disentangled_nonlocal": {
        "block_mode": "embedded_gaussian",
        "block_reduction": 2,
        "block_use_scale": True,
        "block_sub_sample": False,
        "block_temperature": 0.05,
        "block_implementation": "auto",
    },
    "global_context": {
        "block_ratio": 0.25,
        "block_pooling": "attention",
        "block_fusion": ("add",),
    },
    "none": {},
}
_STAGES = {"r50-d8": (3, 4, 6, 3), "r101-d8": (3, 4, 23, 3)}
_BATCH_SIZES = {"cityscapes": 8, "ade20k": 16, "voc12aug": 16}
_CLASSES = {"cityscapes": 19, "ade20k": 150, "voc12aug": 21}
# (width, height) that images are scaled to, keeping their proportions.
_BASE_SIZES = {"cityscapes": (2048, 1024), "ade20k": (2048, 512), "voc12aug": (2048, 512)}

_DEMO_BLOCKS = {
    "demo_nonlocal": "nonlocal",
    "demo_dnl": "disentangled_nonlocal",
    "demo_gc": "global_context",
    "demo_fcn": "none",
}


def _read_published() -> dict[str, dict[str, str]]:
    path = pathlib.Path(__file__).with_name("segmentation_published.csv")
    with path.open(newline="") as file:
        return {row.pop("name"): row for row in csv.DictReader(file)}


_PUBLISHED = _read_published()
NAMES: tuple[str, ...] = (*_PUBLISHED, *_DEMO_BLOCKS)


def get_config(name: str = "demo_nonlocal") -> ConfigDict:
    """The experiment of this name, one of ``NAMES``.

    Raises:
      ValueError: no experiment has this name; the message gives the nearest one.
    """
    if name in _DEMO_BLOCKS:
        return _demo(name)
    if name in _PUBLISHED:
        return _row(name)
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(NAMES)}"
    raise ValueError(f"no experiment {name!r} in configs/segmentation.py: {hint}")


def _row(name: str) -> ConfigDict:
    head, backbone, crop_text, schedule, dataset = name.split("_")
    height, width = (int(n) for n in crop_text.split("x"))
    steps = int(schedule.removesuffix("k")) * 1000
    # Crops of 769 = 8 * 96 + 1 put corners on corners: aligned resizing, sliding-window test.
    aligned = height % 8 == 1
    base_size = tuple(n + aligned for n in _BASE_SIZES[dataset])

    config = _common(name, block=_HEADS[head], num_classes=_CLASSES[dataset], steps=steps)
    config.model.stage_sizes = _STAGES[backbone]
    config.model.align_corners = aligned
    config.data.update(
        name=dataset,
        batch_size=_BATCH_SIZES[dataset],
        base_size=base_size,
        crop=(height, width),
        scale_range=(0.5, 2.0),
        category_max_ratio=0.75,
        flip=0.5,
        photometric=True,
    )
    config.train.update(log_every=50, checkpoint_every=steps // 10, evaluate_every=steps // 10)
    config.evaluation.base_size = base_size
    if aligned:
        config.evaluation.update(mode="slide", crop=(769, 769), stride=(513, 513))
    published = _PUBLISHED[name]
    config.published = {"miou": float(published["miou"]), "checkpoint": published["checkpoint"]}
    if published["miou_ms_flip"]:
        config.published.miou_ms_flip = float(published["miou_ms_flip"])
    return config


def _demo(name: str) -> ConfigDict:
    """A shallow network whose receptive field, 31 of 64 pixels, reaches a flag's rim at most.

    A segmentation task on real handwritten digits, see ``nonlocal_jax.data.digits_flag``: the shape
    of the far flag of its color is a digit's class.
    """
    config = _common(name, block=_DEMO_BLOCKS[name], num_classes=3, steps=600)
    config.model.update(
        stage_sizes=(1, 1),
        strides=(1, 1),
        dilations=(1, 1),
        width=16,
        head_channels=64,
        head_kernel_size=1,
        auxiliary_channels=32,
        dropout=0.0,
    )
    config.data.update(
        name="digits_flag",
        batch_size=32,
        base_size=(64, 64),
        crop=(64, 64),
        scale_range=(1.0, 1.0),
        category_max_ratio=1.0,
        flip=0.0,
        photometric=False,
    )
    config.optimizer.learning_rate = 0.4
    config.train.update(log_every=20, checkpoint_every=100, evaluate_every=100)
    config.evaluation.base_size = (64, 64)
    return config


def _common(name: str, *, block: str, num_classes: int, steps: int) -> ConfigDict:
    config = ConfigDict(
        {
            "name": name,
            "seed": 0,
            "steps": steps,
            "model": {
                "network": "segmentation",
                "num_classes": num_classes,
                "block": block,
                **_BLOCK_OPTIONS[block],
                "block_in_head": True,
                "block_at": (),
                "block_position": "after_conv3",
                "stem": "v1c",
                "stage_sizes": (3, 4, 6, 3),
                "strides": (1, 2, 1, 1),
                "dilations": (1, 1, 2, 4),
                "contract_dilation": True,
                "width": 64,
                "norm": "batch_norm",
                "head_channels": 512,
                "head_kernel_size": 3,
                "auxiliary_channels": 256,
                "dropout": 0.1,
                "align_corners": False,
                "dtype": "float32",
            },
            "loss": {
                "auxiliary_weight": 0.4,
                "avg_non_ignore": False,
            },
            "data": {
                # RGB, in units of 8-bit gray levels.
                "mean": (123.675, 116.28, 103.53),
                "std": (58.395, 57.12, 57.375),
            },
            "optimizer": {
                "learning_rate": 0.01,
                "momentum": 0.9,
                "weight_decay": 5e-4,
            },
            # lr(t) = (lr - end) (1 - t / steps)^power + end, t from 0
            "schedule": {"power": 0.9, "end": 1e-4},
            # devices that share an image; the batch is split over the groups of them
            "mesh": {"context": 1},
            "train": {"log_every": 50, "checkpoint_every": 1000, "evaluate_every": 1000},
            "evaluation": {
                "mode": "whole",
                "crop": (0, 0),
                "stride": (0, 0),
                "base_size": (0, 0),
                # of --multi_scale; a plain evaluation has one scale and no flip
                "ratios": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
                "flip": True,
            },
        }
    )
    config.loss.align_corners = config.model.get_ref("align_corners")
    return config
