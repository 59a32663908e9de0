"""Trains a small network with and without a non-local block, in a few minutes on a laptop.

    python -m experiments.demo                  (make demo)
    python -m experiments.demo --seeds=0,1,2    (the table of the README)

The dataset is the embedded ``digits_flag``. The class of a digit depends on the shape of a distant
flag of the same color, which the network sees only with the block. The command prints the mIoU of
both networks. It writes metrics.json, pictures.png and the work directory of each run to the
directory of --output. If the command is interrupted, run it again to resume.

With --seeds, all four networks are trained once with each seed, and the table is written to
seeds.md in the same directory.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from absl import flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from configs import segmentation
from experiments import cli
from experiments._demo import Network, compare_seeds, define_seeds, resumable, train_network
from nonlocal_jax import create_model, data, evaluation, visualize
from nonlocal_jax._files import make_directory, write_json
from nonlocal_jax._progress import say

_OUTPUT = flags.DEFINE_string("output", "demo", "Directory for all results.")
_SEEDS = define_seeds()

_TITLES = {
    "demo_fcn": "no block",
    "demo_gc": "GC",
    "demo_nonlocal": "NL",
    "demo_dnl": "DNL",
}
# Validation examples whose photographs show more than sky.
_EXAMPLES = 1, 6, 10, 13
# Images are enlarged to this many pixels per side, so that rings and heat maps are smooth.
_ENLARGED = 384


def _table(metrics: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> str:
    """Formats the IoU of every class and the mIoU of each network, in percent."""
    lines = [
        "| IoU % | " + " | ".join(_TITLES[name] for name in metrics) + " |",
        "|---|" + "---:|" * len(metrics),
    ]
    rows = [(c, [m["iou"][i] for m in metrics.values()]) for i, c in enumerate(classes)]
    rows.append(("**mIoU**", [m["miou"] for m in metrics.values()]))
    lines += [
        f"| {row} | " + " | ".join(f"{100 * v:.1f}" for v in cells) + " |" for row, cells in rows
    ]
    return "\n".join(lines)


def _choose_pixel(label: np.ndarray, local: np.ndarray, non_local: np.ndarray) -> tuple[int, int]:
    """Returns a pixel in a digit, if possible one that only the non-local network gets right."""
    digits = label > 0
    right = digits & (local != label) & (non_local == label)
    wanted = right if right.any() else digits
    depth = cv2.distanceTransform(wanted.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return tuple(int(p) for p in np.unravel_index(np.argmax(depth), depth.shape))


def _enlarge(image: np.ndarray) -> np.ndarray:
    factor = _ENLARGED // image.shape[0]
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _brighten(image: np.ndarray) -> np.ndarray:
    """Makes the dark photographs of the dataset visible."""
    return np.round(255 * np.sqrt(image / 255)).astype(np.uint8)


def _draw(networks: Mapping[str, Network], path: pathlib.Path) -> None:
    """Draws the inputs, the ground truth, the predictions, and the attention of one pixel.

    Overlays show the background in gray, without a color.
    """
    source = data.load_source("digits_flag", "val")
    dataset = data.get_dataset("digits_flag")
    predict = {
        name: evaluation.Predictor(network.config).label_maps(network.variables)
        for name, network in networks.items()
    }
    config, variables, _ = networks["demo_nonlocal"]
    model = create_model(config.model)

    columns = [
        "input, brightened",
        "ground truth",
        *(_TITLES[name] for name in networks),
        "attention of the ringed pixel",
    ]
    figure = Figure(figsize=(2.4 * len(columns), 2.4 * len(_EXAMPLES) + 0.7), layout="constrained")
    axes = figure.subplots(len(_EXAMPLES), len(columns))
    for row, index in enumerate(_EXAMPLES):
        example = source[index]
        image, label = example["image"], example["label"]
        predictions = [predict[name](image) for name in networks]
        pixel = _choose_pixel(label, *predictions)
        images = data.normalize(image[None], config.data.mean, config.data.std)
        weights = visualize.attention_map(model, variables, images, pixel)
        bright = _brighten(image)
        enlarged = _enlarge(bright)
        scale = enlarged.shape[0] / image.shape[0]
        center = tuple(int((p + 0.5) * scale) for p in pixel)
        pictures = [
            bright,
            *(
                visualize.color_overlay(
                    bright, np.where(labels > 0, labels, data.IGNORE_INDEX), dataset.palette, 0.8
                )
                for labels in (label, *predictions)
            ),
            visualize.attention_overlay(enlarged, weights, center),
        ]
        for axis, picture, title in zip(axes[row], pictures, columns, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=10)
    colors = [(128, 128, 128), *dataset.palette[1:]]  # the background has none
    entries = [
        Patch(color=np.array(color) / 255, label=name)
        for name, color in zip(dataset.classes, colors, strict=True)
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=len(entries), frameon=False)
    FigureCanvasAgg(figure).print_png(path)


def _demo(directory: pathlib.Path) -> None:
    say(
        "Two networks are trained for a few minutes each. The first has no block: it is meant to\n"
        "fail, with a mean IoU (miou) of about 0.5. With the NL block, it exceeds 0.9."
    )
    networks = {}
    for number, name in enumerate(("demo_fcn", "demo_nonlocal"), start=1):
        say(f"\nTraining {number} of 2: {name}, {_TITLES[name]}")
        networks[name] = train_network(segmentation.get_config(name), directory / name)
    metrics = {name: network.metrics for name, network in networks.items()}
    _draw(networks, directory / "pictures.png")
    classes = data.get_dataset("digits_flag").classes
    write_json(
        directory / "metrics.json",
        {
            name: {
                "miou": m["miou"],
                "overall_accuracy": m["overall_accuracy"],
                "iou": dict(zip(classes, map(float, m["iou"]), strict=True)),
            }
            for name, m in metrics.items()
        },
    )
    say(f"\n{_table(metrics, classes)}\n\nLook at {directory / 'pictures.png'}")


def main(_: list[str]) -> None:
    directory = make_directory(_OUTPUT.value)
    with resumable():
        if _SEEDS.value:
            metric = "miou", "mean mIoU"
            compare_seeds(segmentation.get_config, _TITLES, metric, directory, _SEEDS.value)
        else:
            _demo(directory)


if __name__ == "__main__":
    cli.run(main)
