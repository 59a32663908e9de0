"""Five SGD steps of full-size networks against the real mmsegmentation, in float64.

    PYTHONPATH=. .venv-parity/bin/python tests/parity/sgd.py [--only=gcnet] [--output=FILE.md]

Both networks start from the same weights and see the same batches. Ours takes the train step of
``experiments.train``. PyTorch takes ``torch.optim.SGD`` with the learning rate of mmsegmentation
0.x. Batch norm is in training mode, and there is no dropout. Fails if the bound is broken.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping

import jax
import mmsegmentation
import numpy as np
import step
import torch

import nonlocal_jax as nlj
from configs import segmentation

# name of the row, image size
NETWORKS = [
    ("nonlocal_r50-d8_512x1024_40k_cityscapes", (64, 97)),
    ("dnl_r50-d8_769x769_40k_cityscapes", (65, 97)),
    ("gcnet_r50-d8_512x1024_40k_cityscapes", (64, 97)),
]
LEGEND = f"""
{step.STEPS} steps with batches of {step.BATCH}, float64. The change of a tensor over all steps is
a (ours) or b (mmsegmentation); c is the change of all tensors together. A tensor is a parameter, or
the running mean or variance of a batch norm.

- `bound`: the largest ||a - b|| / (1e-5 ||b|| + 1e-9 ||c||) over all tensors, at most 1.
- `parameters`, `statistics`: the largest ||a - b|| / ||b||.
- `loss`: the largest relative error of the loss of a step.
"""
COLUMNS = ("tensors", "bound", "parameters", "statistics", "loss")


def compare(row: str, size: tuple[int, int], directory: pathlib.Path) -> dict[str, float]:
    config = segmentation.get_config(row)
    config.model.dropout = 0.0
    config.steps = step.STEPS
    reference = mmsegmentation.build(row, {"num_classes": 19}, config.model.align_corners)
    path = directory / "checkpoint.pth"
    torch.save({"state_dict": reference.state_dict()}, path)
    batches = step.make_batches(config, size)
    losses = []
    with jax.enable_x64(True):
        for state, metrics in step.train(config, nlj.convert.load(path, config.model), batches):
            losses.append(metrics["loss"])
            variables = state.variables
    ours = nlj.convert.to_torch(variables, config.model)
    before = mmsegmentation.state_dict(reference.double())
    expected = mmsegmentation.sgd(reference, config, batches)
    return {
        **differences(before, ours, mmsegmentation.state_dict(reference)),
        "loss": max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True)),
    }


def differences(
    before: Mapping[str, np.ndarray],
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
) -> dict[str, float]:
    assert set(before) == set(ours) == set(theirs)
    norm = np.linalg.norm
    changes = {key: norm(theirs[key] - before[key]) for key in before}
    errors = {key: norm(ours[key] - theirs[key]) for key in before}
    whole = norm(list(changes.values()))
    relative = {key: errors[key] / changes[key] for key in before}
    statistics = {key for key in before if ".running_" in key}
    return {
        "tensors": len(before),
        "bound": max(errors[k] / (1e-5 * changes[k] + 1e-9 * whole) for k in before),
        "parameters": max(relative[key] for key in before.keys() - statistics),
        "statistics": max(relative[key] for key in statistics),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of the names to run")
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file for the table")
    arguments = parser.parse_args()
    lines = [f"| network | size | {' | '.join(COLUMNS)} |", "|---|---|" + "---|" * len(COLUMNS)]
    print("\n".join(lines), flush=True)
    broken = []
    for row, size in NETWORKS:
        if arguments.only not in row:
            continue
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            result = compare(row, size, pathlib.Path(directory))
        cells = " | ".join(f"{result[name]:.2g}" for name in COLUMNS[1:])
        lines.append(f"| {row} | {size[0]}x{size[1]} | {result['tensors']} | {cells} |")
        print(lines[-1], flush=True)
        print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
        broken += [row] if not result["bound"] <= 1 else []
        jax.clear_caches()
    print(LEGEND)
    if arguments.output:
        versions = f"jax {jax.__version__}, torch {torch.__version__}, mmsegmentation 1.2.2, CPU"
        arguments.output.write_text("\n".join([*lines, LEGEND, f"Measured with {versions}.", ""]))
    if broken:
        sys.exit("bound broken: " + ", ".join(broken))


if __name__ == "__main__":
    main()
