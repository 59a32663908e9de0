"""Draws training examples with their labels, as they enter the network.

    python -m experiments.browse --config=configs/segmentation.py:demo_nonlocal --output=DIR

The command writes DIR/examples.png. It shows the first augmented examples of a training run with
the same config: each image beside its labels in color, or frames of each clip above its class.
Ignored pixels, such as padding, are striped. The images are also written to DIR/images.
"""

from typing import Any

import numpy as np
from absl import flags

from experiments import cli
from nonlocal_jax import data, visualize
from nonlocal_jax._files import make_directory
from nonlocal_jax.errors import InputError
from nonlocal_jax.tasks import get_task

_CONFIG = cli.define_config()
_OUTPUT = flags.DEFINE_string("output", None, "Directory for the pictures.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory of the prepared datasets.")
_NUMBER = flags.DEFINE_integer("number", 12, "Number of examples.", lower_bound=1)


def _draw_labels(examples: list[dict], dataset: data.Dataset, title: str) -> np.ndarray:
    images, labels, ids = ([e[key] for e in examples] for key in ("image", "label", "id"))
    captions = [str(id_) for id_ in ids]
    classes, palette = dataset.classes, dataset.palette
    title = f"{title}, {images[0].shape[0]}x{images[0].shape[1]} pixels"
    return visualize.example_sheet(images, labels, captions, classes, palette, title=title)


def _draw_clips(examples: list[dict], dataset: data.Dataset, title: str) -> np.ndarray:
    captions = []
    for example in examples:
        label = example["label"]
        found = np.flatnonzero(label) if np.ndim(label) else [label]
        names = ", ".join(dataset.classes[index] for index in found) or "no class"
        captions.append(f"{example['id']}: {names}")
    clips = [example["clip"] for example in examples]
    frames, height, width = clips[0].shape[:3]
    title = f"{title}, {frames} frames of {height}x{width} pixels"
    return visualize.clip_sheet(clips, captions, title)


# How the examples of a task are drawn.
_SHEETS = {"segmentation": _draw_labels, "classification": _draw_clips}


def main(_: list[str]) -> None:
    config = _CONFIG.value
    task = get_task(config)
    if config.task not in _SHEETS:
        raise InputError(
            f"browse draws examples of {' and '.join(_SHEETS)}, and the task is {config.task}; "
            "use another config"
        )
    source = task.open_source(config, "train", _DATA_DIR.value)
    directory = make_directory(_OUTPUT.value)

    def prepare(example: data.Example, rng: np.random.Generator) -> dict[str, Any]:
        return {**task.prepare(example, config, rng), "id": str(example["id"])}

    # The stream of examples is the same for every size of the batch.
    batches = data.train_batches(source, prepare, batch_size=1, seed=config.seed)
    examples = [{k: v[0] for k, v in next(batches).items()} for _ in range(_NUMBER.value)]
    title = f"{source.name}: the first examples of seed {config.seed}"
    sheet = _SHEETS[config.task](examples, source.dataset, title)
    path = directory / "examples.png"
    data.write_png(path, sheet)
    if config.task == "segmentation":
        make_directory(str(directory / "images"))
        for number, example in enumerate(examples):
            data.write_png(directory / "images" / f"{number}.png", example["image"])
    print(f"Look at {path}")


if __name__ == "__main__":
    cli.run(main)
