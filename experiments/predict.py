"""Predicts images or videos, with the published protocol of an experiment.

    python -m experiments.predict --checkpoint=PATH --output=DIR FILE... \\
        --config=configs/segmentation.py:nonlocal_r50-d8_512x1024_40k_cityscapes

PATH is the work directory of a training run, a saved step in it, a .safetensors file or a PyTorch
file. FILE is an image (PNG or JPEG) or a video (MP4, ...) of any size, or a directory of them.

A segmentation network predicts images. For street.jpg the command writes to DIR:

    street_labels.png    The label map, 8-bit gray, with the size of the image. The value of a pixel
                         is the index of its class, from 0, in the order of the dataset's classes.
    street_overlay.png   The image blended with the colors of the classes, with a legend. Small
                         images are enlarged.

With --multi_scale, the probabilities are averaged over scales and flips. An EXIF orientation is
ignored, with a warning.

A classification network predicts videos. For clip.mp4 the command prints the five best classes with
their scores and writes to DIR:

    clip.json            The five classes with their scores, and how they were computed.
    clip_attention.png   Frames of the clip in the center of the video, and where one position of it
                         attends in each frame, in the last non-local block. By default, it is the
                         position that contributes most to the score of the best class.
                         --position=FRAME,ROW,COLUMN chooses another.

The names and the colors of the classes are those that the checkpoint contains. If it contains none,
as PyTorch files do, they are those of the dataset --config.data.name. No data is needed. Only the
names of a folder that you prepared are read from --data-dir. If a file cannot be read, the others
are still predicted. The errors are listed at the end, and the exit status is 2.
"""

import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import PIL.ExifTags
import PIL.Image
from absl import flags
from ml_collections import ConfigDict

from experiments import cli
from nonlocal_jax import convert, data
from nonlocal_jax._files import make_directory, write_json
from nonlocal_jax._progress import progress, report_compilation
from nonlocal_jax.errors import InputError
from nonlocal_jax.tasks import get_task

_CONFIG = cli.define_config()
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Work directory, saved step, .safetensors, .pth or .pkl file.",
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "Directory for the results.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory of the prepared datasets.")
_MULTI_SCALE = flags.DEFINE_bool(
    "multi_scale", False, "For images: whether to average over scales and flips."
)
_POSITION = flags.DEFINE_list(
    "position", None, "For videos: frame, row and column whose attention is drawn."
)

flags.register_validator(
    "position",
    lambda values: values is None or all(map(str.isdecimal, values)),
    "use integers, such as 4,112,112",
)

# This many threads read files while the device computes. The views of a video can be large.
_READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)


def main(arguments: list[str]) -> None:
    config = _CONFIG.value
    task = get_task(config)
    position = _POSITION.value and tuple(map(int, _POSITION.value))
    predictor = task.predictor(config, multi_scale=_MULTI_SCALE.value, position=position)
    if not arguments[1:]:
        kind = predictor.kind
        raise InputError(f"there are no {kind}s; add at least one {kind} or directory of {kind}s")
    files = list(dict.fromkeys(predictor.list_files(arguments[1:])))
    dataset = _dataset(_CHECKPOINT.value, config)
    directory = make_directory(_OUTPUT.value)
    _check_outputs(files, directory, predictor.endings)
    variables = convert.load(_CHECKPOINT.value, config.model, allow_missing_heads=False)
    predict = predictor.predict(variables, dataset)

    if rotated := [str(path) for path in files if _has_orientation(path)]:
        print(
            f"warning: images have an EXIF orientation, which is ignored: {', '.join(rotated)}; "
            "rotate their pixels, for example with the script in docs/datasets.md",
            file=sys.stderr,
        )
    report_compilation("the network")
    errors = []
    contents = _read(files, predictor.read)
    for path, content in progress(contents, len(files), "predicting", unit=predictor.kind):
        if isinstance(content, InputError):
            errors.append(content)
            continue
        text, outputs = predict(path, content)
        if text:
            print(text)
        for ending, output in outputs.items():
            target = directory / f"{path.stem}{ending}"
            write = write_json if target.suffix == ".json" else data.write_png
            write(target, output)
    if errors:
        listed = "".join(f"\n  {error}" for error in errors)
        raise InputError(
            f"cannot read {len(errors)} of {len(files)} {predictor.kind}s:{listed}\n"
            "replace these files, or leave them out"
        )


def _dataset(checkpoint: str, config: ConfigDict) -> data.Dataset:
    """Returns the classes and colors of a checkpoint, or of the config's dataset if it has none."""
    saved = convert.read_dataset(checkpoint)
    if saved is not None:
        dataset = data.Dataset.from_json(saved)
    else:
        try:
            dataset = data.get_dataset(config.data.name, _DATA_DIR.value)
        except InputError as error:
            raise InputError(
                f"{checkpoint} does not contain the names of its classes, so --config.data.name "
                f"must be a known dataset: {error}"
            ) from error
    dataset.check_num_classes(config.model.num_classes)
    return dataset


def _check_outputs(
    files: list[pathlib.Path], directory: pathlib.Path, endings: Sequence[str]
) -> None:
    """Requires that no output replaces an input or another output."""
    inputs = {path.resolve() for path in files}
    first: dict[str, pathlib.Path] = {}
    errors = []
    for path in files:
        if first.setdefault(path.stem, path) != path:
            errors.append(f"{first[path.stem]} and {path} would have the same outputs")
        for output in (directory / f"{path.stem}{ending}" for ending in endings):
            if output.resolve() in inputs:
                errors.append(f"{output} would replace an input")
    if errors:
        listed = "".join(f"\n  {error}" for error in errors)
        raise InputError(
            f"the outputs would replace other files:{listed}\n"
            "use another --output, or predict fewer files at once"
        )


def _has_orientation(path: pathlib.Path) -> bool:
    """Returns whether other programs show an image rotated or flipped."""
    try:
        with path.open("rb") as file, PIL.Image.open(file) as image:
            return image.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1
    except Exception:  # a damaged file is reported when it is read
        return False


def _read(
    files: list[pathlib.Path], read: Callable[[pathlib.Path], Any]
) -> Iterator[tuple[pathlib.Path, Any]]:
    """Yields each file with its content, or with the error of reading it."""

    def read_file(path: pathlib.Path) -> tuple[pathlib.Path, Any]:
        try:
            return path, read(path)
        except InputError as error:
            return path, error

    contents = grain.MapDataset.source(files).map(read_file)
    return iter(contents.to_iter_dataset(_READ_OPTIONS))


if __name__ == "__main__":
    cli.run(main, positional=True)
