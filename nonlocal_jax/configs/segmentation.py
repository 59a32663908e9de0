"""Semantic segmentation: the published NL, DNL and GC networks of mmsegmentation, and the demo.

    python -m experiments.train --workdir=DIR \\
        --config=configs/segmentation.py:nonlocal_r50-d8_512x1024_40k_cityscapes

The name of an experiment contains its head, backbone, crop, steps and dataset. The recipe is that
of mmsegmentation 0.x, which trained all published checkpoints: SGD with weight decay on every
parameter, the same learning rate for batches of 8 and 16, and no warm-up. ``published`` contains
the published mIoU in percent on the validation set (Cityscapes, ADE20K or VOC 2012): ``miou`` at a
single scale and ``miou_ms_flip`` with multiple scales and flips. It is empty for DNL on PASCAL
Context, for which mmsegmentation published nothing. ``recipe`` names the source of the recipe. The
demo (``demo_*``) trains in minutes on a laptop.
"""

import csv
import pathlib
from typing import NamedTuple

from ml_collections import ConfigDict

from nonlocal_jax.configs.common import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    base_config,
    block_options,
    unknown_name,
)


class _Dataset(NamedTuple):
    """The parts of mmsegmentation's recipe that depend on the dataset.

    Attributes:
      num_classes: Number of classes.
      batch_size: Number of images in a global batch.
      base_size: (width, height) that images are resized to fit, with their aspect ratio.
      learning_rate: Learning rate of the first step.
      weight_decay: Weight decay of every parameter.
      slide: Whether images are always evaluated with a sliding window.
    """

    num_classes: int
    batch_size: int
    base_size: tuple[int, int]
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    slide: bool = False


_DATASETS = {
    "cityscapes": _Dataset(num_classes=19, batch_size=8, base_size=(2048, 1024)),
    "ade20k": _Dataset(num_classes=150, batch_size=16, base_size=(2048, 512)),
    "voc12aug": _Dataset(num_classes=21, batch_size=16, base_size=(2048, 512)),
    **{
        f"pascal-context-{classes}": _Dataset(classes, 16, (520, 520), 0.004, 1e-4, slide=True)
        for classes in (59, 60)
    },
}
_STAGE_SIZES = {"r50-d8": (3, 4, 6, 3), "r101-d8": (3, 4, 23, 3)}
_BLOCKS = {"nonlocal": "nonlocal", "dnl": "disentangled_nonlocal", "gcnet": "global_context"}
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
_UNPUBLISHED = tuple(f"dnl_r101-d8_480x480_40k_pascal-context-{classes}" for classes in (59, 60))
NAMES: tuple[str, ...] = (*_PUBLISHED, *_UNPUBLISHED, *_DEMO_BLOCKS)


def get_config(name: str = "demo_nonlocal") -> ConfigDict:
    """Returns the config of the experiment of this name, one of ``NAMES``.

    Raises:
      InputError: No experiment has this name. The message contains the most similar name.
    """
    if name in _DEMO_BLOCKS:
        return _demo(name)
    if name in NAMES:
        return _mmsegmentation(name)
    raise unknown_name(name, NAMES)


def _mmsegmentation(name: str) -> ConfigDict:
    head, backbone, crop_text, schedule, dataset_name = name.split("_")
    dataset = _DATASETS[dataset_name]
    height, width = (int(n) for n in crop_text.split("x"))
    # Crops of 769 = 8 * 96 + 1 pixels come with align_corners and sliding-window evaluation.
    align_corners = height % 8 == 1
    config = _segmentation(
        name,
        steps=int(schedule.removesuffix("k")) * 1000,
        dataset=dataset_name.replace("-context-", "_context"),
        block=_BLOCKS[head],
        num_classes=dataset.num_classes,
        base_size=tuple(n + align_corners for n in dataset.base_size),
        crop=(height, width),
        learning_rate=dataset.learning_rate,
        weight_decay=dataset.weight_decay,
    )
    config.model.update(stage_sizes=_STAGE_SIZES[backbone], align_corners=align_corners)
    config.data.batch_size = dataset.batch_size
    config.evaluation.mode = "slide" if dataset.slide or align_corners else "whole"
    if name in _PUBLISHED:
        row = _PUBLISHED[name]
        config.recipe = "mmsegmentation 0.x, from its config of the published checkpoint"
        config.published = {"miou": float(row["miou"]), "checkpoint": row["checkpoint"]}
        if row["miou_ms_flip"]:
            config.published.miou_ms_flip = float(row["miou_ms_flip"])
    else:
        config.recipe = (
            "mmsegmentation, from its configs of FCN on PASCAL Context (480x480, 40k) and of DNL; "
            "it has no config of DNL on PASCAL Context"
        )
    return config


def _demo(name: str) -> ConfigDict:
    """Returns the config of a small network on ``digits_flag``, without augmentation.

    The class of a handwritten digit depends on the shape of the flag of the same color elsewhere in
    the image. The convolutions see 31 of 64 pixels and cannot reach that flag.
    """
    config = _segmentation(
        name,
        steps=600,
        dataset="digits_flag",
        block=_DEMO_BLOCKS[name],
        num_classes=3,
        base_size=(64, 64),
        crop=(64, 64),
        learning_rate=0.4,
        weight_decay=5e-4,
    )
    config.recipe = "this project"
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
        batch_size=32,
        scale_range=(1.0, 1.0),
        category_max_ratio=1.0,
        flip=0.0,
        photometric=False,
    )
    config.train.update(log_every=20, checkpoint_every=100, evaluate_every=100)
    return config


def _segmentation(
    name: str,
    *,
    steps: int,
    dataset: str,
    block: str,
    num_classes: int,
    base_size: tuple[int, int],
    crop: tuple[int, int],
    learning_rate: float,
    weight_decay: float,
) -> ConfigDict:
    config = base_config(
        name,
        task="segmentation",
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
    config.model = {
        "network": "segmentation",
        "num_classes": num_classes,
        "block": block,
        **block_options(block),
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
        # "float32" with products of full precision, "bfloat16", or "default": float32 with products
        # of JAX's default precision, which is less on TPUs and NVIDIA GPUs.
        "dtype": "float32",
    }
    config.loss = {
        "auxiliary_weight": 0.4,
        "avg_non_ignore": False,
        "align_corners": config.model.get_ref("align_corners"),
    }
    config.data.update(
        name=dataset,
        batch_size=16,
        base_size=base_size,
        crop=crop,
        scale_range=(0.5, 2.0),
        category_max_ratio=0.75,
        flip=0.5,
        photometric=True,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    config.evaluation = {
        "mode": "whole",
        "base_size": base_size,
        # Windows of mode "slide": size and distance.
        "crop": crop,
        "stride": tuple(round(2 * n / 3) for n in crop),
        # Used with --multi_scale. Evaluation without it uses one scale and no flip.
        "ratios": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        "flip": True,
    }
    return config
