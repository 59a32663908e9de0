"""Twelve full-size networks against the real mmsegmentation, number by number.

    make parity            (or: python tests/parity/run.py --only=gcnet --output=FILE.md)

Each network gets weights from a formula, is saved by PyTorch as a published checkpoint is, read by
``nonlocal_jax.convert`` and compared in float64; then in float32; then exported and read by PyTorch
again. Prints a Markdown table, a row when a network is done, and fails if a bound is broken.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import formula
import jax
import jax.numpy as jnp
import mmsegmentation
import numpy as np
import torch
from step import make_step

import nonlocal_jax as nlj
from configs import segmentation
from nonlocal_jax.evaluation import multi_scale_inference, slide_inference

# name of the row, classes, image size: three heads, two depths, both corner conventions.
NETWORKS = [
    ("nonlocal_r50-d8_512x1024_40k_cityscapes", 19, (64, 96)),
    ("nonlocal_r50-d8_769x769_40k_cityscapes", 21, (65, 97)),
    ("nonlocal_r101-d8_512x512_80k_ade20k", 150, (97, 64)),
    ("nonlocal_r101-d8_769x769_80k_cityscapes", 19, (81, 81)),
    ("dnl_r50-d8_512x512_80k_ade20k", 150, (65, 96)),
    ("dnl_r50-d8_769x769_80k_cityscapes", 19, (97, 65)),
    ("dnl_r101-d8_512x1024_40k_cityscapes", 19, (64, 97)),
    ("dnl_r101-d8_769x769_40k_cityscapes", 150, (80, 80)),
    ("gcnet_r50-d8_512x512_20k_voc12aug", 21, (96, 64)),
    ("gcnet_r50-d8_769x769_40k_cityscapes", 19, (73, 89)),
    ("gcnet_r101-d8_512x512_80k_ade20k", 150, (64, 65)),
    ("gcnet_r101-d8_769x769_80k_cityscapes", 21, (65, 97)),
]
CROP, STRIDE = (49, 57), (33, 38)
RATIOS = (0.75, 1.0, 1.25)

# What is printed, and its bound.
BOUNDS = {
    "logits": 1e-11,
    "slide": 1e-11,
    "ms+flip": 1e-11,
    "classes": 0,
    "losses": 1e-8,
    "gradients": 1.0,
    "statistics": 1e-6,
    "f32 logits": 3.0,
    "f32 loss": 1e-5,
    "f32 grad norm": 1e-3,
    "export": 0,
    "reloaded": 0,
}
LEGEND = """
- `logits`, `slide`, `ms+flip`, float64: max|a - b| / std(b); `classes`: pixels whose class differs
  although the top two probabilities differ by more than 1e-3.
- `losses`, float64: the largest relative error of decode, auxiliary and total loss.
- `gradients`, float64: the largest ||a - b|| / (1e-6 ||b|| + 1e-10 ||g||) over all parameters, g
  the whole gradient; `statistics`: running means and variances after the step,
  max|a - b| / max|b|.
- `f32 logits`: distance to PyTorch's float64 logits, divided by PyTorch's own float32 distance.
- `f32 loss`, `f32 grad norm`: relative to PyTorch's float32.
- `export`: arrays that differ after export and import; `reloaded`: max|a - b| of PyTorch's logits
  with its own weights and with our export, loaded with strict=True.
"""


def distance(a, b) -> float:
    return float(np.max(np.abs(np.asarray(a) - b)) / np.std(b))


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

        losses, gradients, statistics = mmsegmentation.train(reference, images, labels)
        ours = jax.device_get(step(wide, x, jnp.asarray(labels)))
        result["losses"] = max(abs(ours[0][k] / v - 1) for k, v in losses.items())
        own = nlj.convert.to_torch({"params": ours[1]}, config.model)
        assert set(own) == set(gradients)
        whole = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
        result["gradients"] = max(
            np.linalg.norm(own[k] - g) / (1e-6 * np.linalg.norm(g) + 1e-10 * whole)
            for k, g in gradients.items()
        )
        own = nlj.convert.to_torch({"batch_stats": ours[2]}, config.model)
        result["statistics"] = max(
            np.max(np.abs(own[k] - s)) / np.max(np.abs(s)) for k, s in statistics.items()
        )

    reference.float()
    narrow = images.astype(np.float32)
    theirs = np.max(np.abs(mmsegmentation.logits(reference, narrow) - exact))
    result["f32 logits"] = np.max(np.abs(apply(loaded, narrow) - exact)) / theirs
    losses, gradients, _ = mmsegmentation.train(reference, narrow, labels)
    ours = jax.device_get(step(loaded, narrow, labels))
    result["f32 loss"] = max(abs(ours[0][k] / v - 1) for k, v in losses.items())
    norms = [
        np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in tree))
        for tree in (jax.tree.leaves(ours[1]), gradients.values())
    ]
    result["f32 grad norm"] = abs(norms[0] / norms[1] - 1)

    exported = directory / "exported.pth"
    nlj.convert.export_torch(exported, loaded, config.model)
    again = nlj.convert.load(exported, config.model)
    differ = jax.tree.map(lambda a, b: a.tobytes() != b.tobytes(), loaded, again)
    result["export"] = sum(jax.tree.leaves(differ))
    before = mmsegmentation.logits(reference, narrow)
    content = torch.load(exported, weights_only=True)
    with torch.no_grad():
        for value in reference.state_dict().values():
            value.zero_()
    reference.load_state_dict(content["state_dict"], strict=True)
    result["reloaded"] = np.max(np.abs(mmsegmentation.logits(reference, narrow) - before))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of the names to run")
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file for the table")
    arguments = parser.parse_args()
    chosen = [network for network in NETWORKS if arguments.only in network[0]]
    lines = [
        f"| network | classes | size | {' | '.join(BOUNDS)} |",
        "|---|---|---|" + "---|" * len(BOUNDS),
        "| bound | | | " + " | ".join(f"{bound:g}" for bound in BOUNDS.values()) + " |",
    ]
    print("\n".join(lines), flush=True)
    broken = []
    for number, (row, classes, size) in enumerate(chosen, 1):
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            result = compare(row, classes, size, pathlib.Path(directory))
        cells = [f"{result[name]:.2g}" for name in BOUNDS]
        lines.append(f"| {row} | {classes} | {size[0]}x{size[1]} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
        print(f"{number}/{len(chosen)}, {time.monotonic() - start:.0f} s", file=sys.stderr)
        broken += [f"{row}: {n}" for n, bound in BOUNDS.items() if not result[n] <= bound]
        jax.clear_caches()
    print(LEGEND)
    if arguments.output:
        versions = f"jax {jax.__version__}, torch {torch.__version__}, mmsegmentation 1.2.2, CPU"
        arguments.output.write_text("\n".join([*lines, LEGEND, f"Measured with {versions}.", ""]))
    if broken:
        sys.exit("bounds broken: " + ", ".join(broken))


if __name__ == "__main__":
    main()
