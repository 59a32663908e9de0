"""Draws training examples with their labels, as they enter the network.

    python -m experiments.browse --config=configs/segmentation.py:demo_nonlocal --output=DIR

The command writes DIR/examples.png. It shows the first augmented examples of a training run with
the same config, each beside its labels in color. Ignored pixels, such as padding, are striped.
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
_OUTPUT = flags.DEFINE_string("output", None, "Directory for examples.png.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory of the prepared datasets.")
_NUMBER = flags.DEFINE_integer("number", 12, "Number of examples.", lower_bound=1)


def main(_: list[str]) -> None:
    config = _CONFIG.value
    task = get_task(config)
    if config.task != "segmentation":
        raise InputError(f"browse draws label maps, and the task is {config.task}; use another one")
    source = task.open_source(config, "train", _DATA_DIR.value)
    directory = make_directory(_OUTPUT.value)

    def prepare(example: data.Example, rng: np.random.Generator) -> dict[str, Any]:
        return {**task.prepare(example, config, rng), "id": str(example["id"])}

    # The stream of examples is the same for every size of the batch.
    batches = data.train_batches(source, prepare, batch_size=1, seed=config.seed)
    examples = [next(batches) for _ in range(_NUMBER.value)]
    images, labels, ids = ([e[key][0] for e in examples] for key in ("image", "label", "id"))
    height, width = config.data.crop
    sheet = visualize.example_sheet(
        images,
        labels,
        [str(id_) for id_ in ids],
        source.dataset.classes,
        source.dataset.palette,
        title=f"{source.name}: the first examples of seed {config.seed}, {height}x{width} pixels",
    )
    path = directory / "examples.png"
    data.write_png(path, sheet)
    print(f"Look at {path}")


if __name__ == "__main__":
    cli.run(main)
