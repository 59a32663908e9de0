"""Trains six small networks on videos, in less than ten minutes on a laptop.

    python -m experiments.demo_video                  (make demo-video)
    python -m experiments.demo_video --seeds=0,1,2    (the table of the README)

The dataset is the embedded ``digits_odd``. Three digits appear one after another. Two of them have
the same color, and the class is the color of the other one. The networks are equal except for their
block: none, an NL block that attends along space, time or both, a DNL block, or a GC block.

The command prints the top-1 accuracy of each network. It writes metrics.json, curves.png,
pictures.png and the work directory of each run to the directory of --output. If the command is
interrupted, run it again to resume.

With --seeds, each network is trained once with each seed, and the table is written to seeds.md in
the same directory.
"""

import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from configs import video
from experiments import cli
from experiments._demo import Network, compare_seeds, define_seeds, resumable, train_network
from nonlocal_jax import create_model, data, visualize
from nonlocal_jax._files import make_directory, write_file, write_json
from nonlocal_jax._progress import say

_OUTPUT = flags.DEFINE_string("output", "demo-video", "Directory for all results.")
_SEEDS = define_seeds()

_TITLES = {
    "demo_video_none": "no block",
    "demo_video_space": "NL, only space",
    "demo_video_time": "NL, only time",
    "demo_video_nonlocal": "NL, space and time",
    "demo_video_dnl": "DNL",
    "demo_video_gc": "GC",
}
_METRIC = "top1_1clip"
_ROWS = 3


def _draw_curves(directory: pathlib.Path) -> bytes:
    """Draws the accuracy of every network over the steps, from the logs of the runs."""
    figure = Figure(figsize=(7.2, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, title in _TITLES.items():
        lines = (directory / name / "metrics.jsonl").read_text().splitlines()
        key = f"val/{_METRIC}"
        records = [record for record in map(json.loads, lines) if key in record]
        steps, values = ([record[k] for record in records] for k in ("step", key))
        axes.plot(steps, 100 * np.array(values), marker="o", markersize=4, label=title)
    axes.axhline(25, color="0.6", linestyle=":", label="chance")
    axes.set_title("top-1 accuracy on the validation clips (%)", loc="left", fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylim(0, 104)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()


def _choose_position(frames: np.ndarray, color: Sequence[int]) -> tuple[int, int, int]:
    """Returns the pixel of this color that is closest to the middle of its digit."""
    pixels = np.argwhere((frames == np.array(color, np.uint8)).all(-1))
    pixels = pixels[pixels[:, 0] == pixels[0, 0]]
    distances = np.square(pixels - pixels.mean(0)).sum(-1)
    return tuple(map(int, pixels[distances.argmin()]))


def _inputs(network: Network, frames: np.ndarray) -> tuple[nn.Module, Mapping[str, Any], jax.Array]:
    """Returns the model, the variables, and the frames as a normalized clip."""
    config = network.config
    clip = data.normalize(frames[None], config.data.mean, config.data.std)
    return create_model(config.model), network.variables, clip


def _predict(network: Network, frames: np.ndarray) -> int:
    model, variables, clip = _inputs(network, frames)
    return int(jnp.argmax(model.apply(variables, clip)))


def _draw(networks: Mapping[str, Network]) -> np.ndarray:
    """Draws clips, the predictions of two networks, and where the odd digit attends."""
    source = data.load_source("digits_odd", "val")
    classes, palette = source.dataset.classes, source.dataset.palette
    strips = []
    for row in range(_ROWS):
        example = source[row]
        frames = example["video"].read(range(example["num_frames"]))
        without, with_block = (
            classes[_predict(networks[name], frames)]
            for name in ("demo_video_none", "demo_video_nonlocal")
        )
        position = _choose_position(frames, palette[example["label"]])
        model, variables, clip = _inputs(networks["demo_video_nonlocal"], frames)
        weights = visualize.attention_map(model, variables, clip, position)
        text = f"without a block: {without}, with an NL block: {with_block}"
        line = f"class: {classes[example['label']]}, prediction {text}"
        strips.append(visualize.attention_strip(frames, weights, position, line))
    return np.concatenate(strips)


def _demo(directory: pathlib.Path) -> None:
    say(
        "Six networks are trained, each in a minute or two. The first two do not relate frames.\n"
        "They are meant to fail, with an accuracy (top1_1clip) below 0.1. The others exceed 0.9."
    )
    networks = {}
    for number, (name, title) in enumerate(_TITLES.items(), start=1):
        say(f"\nTraining {number} of {len(_TITLES)}: {name}, {title}")
        networks[name] = train_network(video.get_config(name), directory / name)
    data.write_png(directory / "pictures.png", _draw(networks))
    write_file(directory / "curves.png", _draw_curves(directory))
    accuracies = {name: network.metrics[_METRIC] for name, network in networks.items()}
    write_json(directory / "metrics.json", {n: {"top1": a} for n, a in accuracies.items()})
    say("\n| network | top-1 % |\n|---|---:|")
    for name, accuracy in accuracies.items():
        say(f"| {_TITLES[name]} (`{name}`) | {100 * accuracy:.1f} |")
    say(f"\nLook at {directory / 'pictures.png'} and {directory / 'curves.png'}")


def main(_: list[str]) -> None:
    directory = make_directory(_OUTPUT.value)
    with resumable():
        if _SEEDS.value:
            metric = _METRIC, "mean top-1"
            compare_seeds(video.get_config, _TITLES, metric, directory, _SEEDS.value)
        else:
            _demo(directory)


if __name__ == "__main__":
    cli.run(main)
