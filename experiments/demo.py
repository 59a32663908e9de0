"""Shows on a laptop what a non-local network learns and a local one cannot.

    python -m experiments.demo                  (make demo)
    python -m experiments.demo --seeds=0,1,2    (the table of the README)

Trains the same small network with a non-local block and without one on the embedded dataset
``digits_flag``: the shape of the far flag of its color is a digit's class. Prints both mIoU and
writes DIR/metrics.json, DIR/pictures.png and a work directory of each run. The same command again
goes on where it was stopped.

With --seeds all four networks are trained once for each seed, and DIR/seeds.md receives the table.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from absl import flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from configs import segmentation
from experiments import cli
from nonlocal_jax import create_model, data, evaluation, train, visualize
from nonlocal_jax._files import make_directory, write_file, write_json

_OUTPUT = flags.DEFINE_string("output", "demo", "directory for everything that is written")
_SEEDS = flags.DEFINE_list("seeds", [], "train all four networks once for each of these seeds")
flags.register_validator(
    "seeds", lambda seeds: all(map(str.isdecimal, seeds)), "use integers, such as 0,1,2"
)

_TITLES = {
    "demo_fcn": "no block",
    "demo_gc": "GC",
    "demo_nonlocal": "NL",
    "demo_dnl": "DNL",
}
_ROWS = 4
# A picture is enlarged to this many pixels a side, so that rings and heat maps are smooth.
_ENLARGED = 384


def _train(name: str, workdir: pathlib.Path, seed: int = 0) -> tuple[Any, dict, dict]:
    """Trains one network; gives its config, variables and metrics."""
    config = segmentation.get_config(name)
    config.seed = seed
    sources = {split: data.load_source(config.data.name, split) for split in ("train", "val")}
    evaluate = evaluation.evaluator(config, sources["val"])
    result = train.train(config, workdir, sources["train"], evaluate=evaluate)
    if result.signal is not None:
        raise KeyboardInterrupt
    variables = jax.device_get(result.state.variables)
    return config, variables, evaluate(variables)


def _table(metrics: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> str:
    """The IoU of every class and their mean, in percent, networks side by side."""
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
    """A pixel well inside a digit, where only the non-local network is right if there is such."""
    digits = label > 0
    right = digits & (local != label) & (non_local == label)
    wanted = right if right.any() else digits
    depth = cv2.distanceTransform(wanted.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return tuple(int(p) for p in np.unravel_index(np.argmax(depth), depth.shape))


def _enlarge(image: np.ndarray) -> np.ndarray:
    factor = _ENLARGED // image.shape[0]
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _draw(networks: Mapping[str, tuple], path: pathlib.Path) -> None:
    """Writes one sheet: input, truth, both predictions, and where a chosen pixel looks."""
    source = data.load_source("digits_flag", "val")
    palette = data.get_info("digits_flag").palette
    apply_fns, protocols = {}, {}
    for name, (config, variables, _) in networks.items():
        apply_fns[name] = evaluation.inference_fn(create_model(config.model), variables)
        protocols[name] = evaluation.inference_protocol(config)
    config, variables, _ = networks["demo_nonlocal"]
    model = create_model(config.model)

    columns = [
        "input",
        "truth",
        *(f"{_TITLES[n]}: mIoU {100 * m['miou']:.1f} %" for n, (_, _, m) in networks.items()),
        "where the ringed pixel looks",
    ]
    figure = Figure(figsize=(2.4 * len(columns), 2.4 * _ROWS + 0.4), layout="constrained")
    axes = figure.subplots(_ROWS, len(columns))
    for row in range(_ROWS):
        example = source[row]
        image, label = example["image"], example["label"]
        predictions = {
            name: evaluation.predict(apply_fns[name], image, protocols[name]) for name in networks
        }
        pixel = _choose_pixel(label, *predictions.values())
        images = data.normalize(image[None], config.data.mean, config.data.std)
        weights = visualize.attention_map(model, variables, images, pixel)
        enlarged = _enlarge(image)
        scale = enlarged.shape[0] / image.shape[0]
        center = tuple(int((p + 0.5) * scale) for p in pixel)
        pictures = [
            image,
            *(
                visualize.color_overlay(image, labels, palette, alpha=0.85)
                for labels in (label, *predictions.values())
            ),
            visualize.attention_overlay(enlarged, weights, center),
        ]
        for axis, picture, title in zip(axes[row], pictures, columns, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=10)
    FigureCanvasAgg(figure).print_png(path)


def _demo(directory: pathlib.Path) -> None:
    networks = {name: _train(name, directory / name) for name in ("demo_fcn", "demo_nonlocal")}
    metrics = {name: network[2] for name, network in networks.items()}
    _draw(networks, directory / "pictures.png")
    classes = data.get_info("digits_flag").classes
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
    print(f"\n{_table(metrics, classes)}\n\nLook at {directory / 'pictures.png'}")


def _compare_seeds(directory: pathlib.Path, seeds: Sequence[int]) -> None:
    lines = [
        f"| network | {' | '.join(f'seed {seed}' for seed in seeds)} | mean mIoU % |",
        "|---|" + "---:|" * (len(seeds) + 1),
    ]
    for name, title in _TITLES.items():
        miou = [_train(name, directory / f"{name}_{s}", s)[2]["miou"] for s in seeds]
        cells = " | ".join(f"{100 * value:.1f}" for value in (*miou, np.mean(miou)))
        lines.append(f"| {title} (`{name}`) | {cells} |")
    table = "\n".join(lines)
    write_file(directory / "seeds.md", table + "\n")
    print(f"\n{table}")


def main(_: list[str]) -> None:
    directory = make_directory(_OUTPUT.value)
    if _SEEDS.value:
        _compare_seeds(directory, [int(seed) for seed in _SEEDS.value])
    else:
        _demo(directory)


if __name__ == "__main__":
    cli.run(main)
