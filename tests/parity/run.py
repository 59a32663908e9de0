"""Twelve full-size networks against the real mmsegmentation, number by number.

    make parity            (or: python tests/parity/run.py --only=gcnet --output=FILE.md)

Each network gets weights from a formula, is saved by PyTorch as a published checkpoint is, read by
``nonlocal_jax.convert`` and compared in float64; then in float32; then exported and read by PyTorch
again. Prints a Markdown table, a row when a network is done, and fails if a bound is broken.
"""

import pathlib

import formula
import jax
import jax.numpy as jnp
import mmsegmentation
import numpy as np
import torch
from comparison import (
    COMMON_BOUNDS,
    COMMON_LEGEND,
    compare_export,
    compare_training,
    compare_training_float32,
    distance,
    print_table,
)
from step import make_step

import nonlocal_jax as nlj
from configs import segmentation
from nonlocal_jax.evaluation import multi_scale_inference, slide_inference

# name of the row: classes, image size; three heads, two depths, both corner conventions.
NETWORKS = {
    "nonlocal_r50-d8_512x1024_40k_cityscapes": (19, (64, 96)),
    "nonlocal_r50-d8_769x769_40k_cityscapes": (21, (65, 97)),
    "nonlocal_r101-d8_512x512_80k_ade20k": (150, (97, 64)),
    "nonlocal_r101-d8_769x769_80k_cityscapes": (19, (81, 81)),
    "dnl_r50-d8_512x512_80k_ade20k": (150, (65, 96)),
    "dnl_r50-d8_769x769_80k_cityscapes": (19, (97, 65)),
    "dnl_r101-d8_512x1024_40k_cityscapes": (19, (64, 97)),
    "dnl_r101-d8_769x769_40k_cityscapes": (150, (80, 80)),
    "gcnet_r50-d8_512x512_20k_voc12aug": (21, (96, 64)),
    "gcnet_r50-d8_769x769_40k_cityscapes": (19, (73, 89)),
    "gcnet_r101-d8_512x512_80k_ade20k": (150, (64, 65)),
    "gcnet_r101-d8_769x769_80k_cityscapes": (21, (65, 97)),
}
CROP, STRIDE = (49, 57), (33, 38)
RATIOS = (0.75, 1.0, 1.25)

# What is printed, and its bound.
BOUNDS = {
    "logits": 1e-11,
    "slide": 1e-11,
    "ms+flip": 1e-11,
    "classes": 0,
    **COMMON_BOUNDS,
}
LEGEND = f"""
- `logits`, `slide`, `ms+flip`, float64: max|a - b| / std(b); `classes`: pixels whose class differs
  although the top two probabilities differ by more than 1e-3.
- `losses`, float64: the largest relative error of decode, auxiliary and total loss.
{COMMON_LEGEND}"""


def class_changes(a, b) -> int:
    first, second = np.sort(b, axis=-1)[..., -1:-3:-1].transpose(2, 0, 1)
    return int(np.sum((np.argmax(a, -1) != np.argmax(b, -1)) & (first - second > 1e-3)))


def compare(row: str, classes: int, size: tuple[int, int], directory: pathlib.Path) -> dict:
    config = segmentation.get_config(row)
    config.model.num_classes = classes
    config.model.dropout = 0.0
    corners = config.model.align_corners
    reference = mmsegmentation.build(row, {"num_classes": classes}, corners)
    path = directory / "checkpoint.pth"
    torch.save({"meta": {"CLASSES": ("a",)}, "state_dict": reference.state_dict()}, path)
    loaded = nlj.convert.load(path, config.model)
    model = nlj.create_model(config.model)
    apply = jax.jit(model.apply)
    step = make_step(model, config)
    images, image = formula.images(2, *size), formula.image_uint8(*size)
    labels = formula.labels(2, *size, classes)
    scales = {"base_size": size[::-1], "ratios": RATIOS, "mean": (120, 115, 100), "std": (58,) * 3}
    result = {}

    with jax.enable_x64(True):
        reference.double()
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), loaded)

        def infer(x):
            return apply(wide, x)

        x = jnp.asarray(images)
        exact = mmsegmentation.logits(reference, images)
        result["logits"] = distance(infer(x), exact)
        expected = mmsegmentation.logits(reference, images, CROP, STRIDE)
        result["slide"] = distance(slide_inference(infer, x, CROP, STRIDE, corners), expected)
        windows = {"crop": CROP, "stride": STRIDE} if corners else {}
        expected = mmsegmentation.multi_scale(reference, image, **scales, **windows)
        actual = multi_scale_inference(infer, image, **scales, **windows, align_corners=corners)
        result["ms+flip"] = distance(actual, expected)
        result["classes"] = class_changes(np.asarray(actual), expected)

        theirs = mmsegmentation.train(reference, images, labels)
        ours = jax.device_get(step(wide, x, jnp.asarray(labels)))
        result |= compare_training(ours, theirs, config.model)

    reference.float()
    narrow = images.astype(np.float32)
    theirs = np.max(np.abs(mmsegmentation.logits(reference, narrow) - exact))
    result["f32 logits"] = np.max(np.abs(apply(loaded, narrow) - exact)) / theirs
    ours = jax.device_get(step(loaded, narrow, labels))
    result |= compare_training_float32(ours, mmsegmentation.train(reference, narrow, labels))

    def logits():
        return mmsegmentation.logits(reference, narrow)

    exported = directory / "exported.pth"
    return result | compare_export(reference, logits, loaded, config.model, exported)


if __name__ == "__main__":
    summary, columns = __doc__.splitlines()[0], ("classes", "size")
    print_table(summary, NETWORKS, columns, BOUNDS, compare, LEGEND, "mmsegmentation 1.2.2")
