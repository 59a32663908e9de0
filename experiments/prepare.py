"""Prepares a dataset for training and evaluation, from its raw download or from your own files.

    python -m experiments.prepare cityscapes --source=DIR --data-dir=DIR
    python -m experiments.prepare folder --name=NAME --source=DIR --data-dir=DIR
    python -m experiments.prepare video_folder --name=NAME --source=DIR --data-dir=DIR

The datasets are cityscapes, ade20k, voc12aug, pascal_context59, pascal_context60, and of videos
kinetics400 and charades. docs/datasets.md says what to download, and how a folder of your own
images or videos is laid out.

Every file is decoded and checked before the dataset is written. All problems are listed at once. If
the command is interrupted, run it again. It continues after the last video.
"""

import signal
import sys

from absl import flags

from experiments import cli
from nonlocal_jax import data
from nonlocal_jax.errors import InputError

_SOURCE = flags.DEFINE_string(
    "source", None, "Directory of the download, or of your images or videos.", required=True
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory of the prepared datasets.")
_NAME = flags.DEFINE_string("name", None, "Name of the new dataset, only for a folder.")
_STORAGE = flags.DEFINE_string("storage", "h264", "How videos are stored: h264, jpeg or copy.")
_SHORT_SIDE = flags.DEFINE_integer("short_side", 256, "Shorter side of larger videos in pixels.")
_ALLOW_MISSING = flags.DEFINE_integer(
    "allow_missing", 0, "Number of videos that may be missing or damaged, and are left out."
)
_PARTIAL = flags.DEFINE_bool("partial", False, "Whether to accept a part of the dataset.")

# The names of at most so many classes are printed.
_MAX_NAMES = 30


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise InputError("give the name of one dataset, or folder, as in: prepare cityscapes")
    # What was written is removed, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    prepared = data.prepare_dataset(
        arguments[1],
        _SOURCE.value,
        _DATA_DIR.value,
        name=_NAME.value,
        partial=_PARTIAL.value,
        storage=_STORAGE.value,
        short_side=_SHORT_SIDE.value,
        allow_missing=_ALLOW_MISSING.value,
    )
    dataset = prepared.dataset
    counts = ", ".join(f"{number:,} {split}" for split, number in prepared.examples.items())
    for line in prepared.notes:
        print(line, file=sys.stderr)
    if prepared.new:
        print(f"prepared {dataset.name} in {prepared.directory}")
    else:
        print(
            f"{dataset.name} is already prepared in {prepared.directory}; "
            "delete this directory to prepare it again"
        )
    print(f"examples: {counts}")
    names = [*dataset.classes[:_MAX_NAMES], *(["..."] if dataset.classes[_MAX_NAMES:] else [])]
    print(f"classes:  {len(dataset.classes)} ({', '.join(names)})")


if __name__ == "__main__":
    cli.run(main, positional=True)
