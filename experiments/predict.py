"""Segments images, and writes a label map and a colored overlay for each.

    python -m experiments.predict --checkpoint=PATH --output=DIR IMAGE... \\
        --config=configs/segmentation.py:nonlocal_r50-d8_512x1024_40k_cityscapes

PATH is the work directory of a training run, a saved step in it, a .safetensors file or a PyTorch
file. IMAGE is a PNG or JPEG file of any size, or a directory of such files. For street.jpg the
command writes to DIR:

    street_labels.png    The label map, 8-bit gray, with the size of the image. The value of a pixel
                         is the index of its class, from 0, in the order of the dataset's classes.
    street_overlay.png   The image blended with the colors of the classes, with a legend. Small
                         images are enlarged.

The names and the colors of the classes are those that the checkpoint contains. No data is needed.
Only if it contains none, as PyTorch files do, they are those of the dataset --config.data.name.

The protocol is the published protocol of the experiment. With --multi_scale, the probabilities are
averaged over its scales and flips. If an image cannot be read, the others are still segmented. The
errors are listed at the end, and the exit status is 2. An EXIF orientation is ignored, with a
warning.
"""

import pathlib
import sys
from collections.abc import Iterator

import grain
import numpy as np
import PIL.ExifTags
import PIL.Image
from absl import flags
from ml_collections import ConfigDict

from experiments import cli
from nonlocal_jax import convert, data, evaluation, visualize
from nonlocal_jax._files import make_directory
from nonlocal_jax._progress import progress
from nonlocal_jax.errors import InputError
from nonlocal_jax.tasks import get_task

_CONFIG = cli.define_config()
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Work directory, saved step, .safetensors file or .pth file.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Directory for the label maps and overlays.", required=True
)
_MULTI_SCALE = flags.DEFINE_bool("multi_scale", False, "Whether to average over scales and flips.")

# Overlays of smaller images are enlarged by a whole factor up to this many pixels.
_SMALL = 256

# This many threads read images while the device computes.
_READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def main(arguments: list[str]) -> None:
    config = _CONFIG.value
    get_task(config)  # checks the config
    if not arguments[1:]:
        raise InputError("there are no images; add at least one image or directory of images")
    files = list(dict.fromkeys(data.list_images(arguments[1:])))
    dataset = _dataset(_CHECKPOINT.value, config)
    directory = make_directory(_OUTPUT.value)
    _check_outputs(files, directory)
    predictor = evaluation.Predictor(config, multi_scale=_MULTI_SCALE.value)
    variables = convert.load(_CHECKPOINT.value, config.model, allow_missing_heads=False)
    predict = predictor.label_maps(variables)

    if rotated := [str(path) for path in files if _has_orientation(path)]:
        print(
            f"warning: images have an EXIF orientation, which is ignored: {', '.join(rotated)}; "
            "rotate their pixels, for example with the script in docs/datasets.md",
            file=sys.stderr,
        )
    errors = []
    for path, image in progress(_read(files), len(files), "predicting"):
        if isinstance(image, InputError):
            errors.append(image)
            continue
        labels = predict(image)
        overlay = visualize.color_overlay(image, labels, dataset.palette)
        factor = max(1, _SMALL // max(labels.shape))
        overlay = overlay.repeat(factor, axis=0).repeat(factor, axis=1)
        overlay = visualize.add_legend(overlay, labels, dataset.classes, dataset.palette)
        for output, picture in zip(_outputs(path, directory), (labels, overlay), strict=True):
            data.write_png(output, picture)
    if errors:
        listed = "".join(f"\n  {error}" for error in errors)
        raise InputError(
            f"cannot read {len(errors)} of {len(files)} images:{listed}\n"
            "replace these files, or leave them out"
        )


def _dataset(checkpoint: str, config: ConfigDict) -> data.Dataset:
    """Returns the classes and colors of a checkpoint, or of the config's dataset if it has none."""
    saved = convert.read_dataset(checkpoint)
    if saved is not None:
        dataset = data.Dataset.from_json(saved)
    else:
        try:
            dataset = data.get_dataset(config.data.name)
        except InputError as error:
            raise InputError(
                f"{checkpoint} does not contain the names of its classes, so --config.data.name "
                f"must be a known dataset: {error}"
            ) from error
    dataset.check_num_classes(config.model.num_classes)
    return dataset


def _outputs(path: pathlib.Path, directory: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the files of the label map and of the overlay of an image."""
    return directory / f"{path.stem}_labels.png", directory / f"{path.stem}_overlay.png"


def _check_outputs(files: list[pathlib.Path], directory: pathlib.Path) -> None:
    """Requires that no output replaces an input or another output."""
    inputs = {path.resolve() for path in files}
    first: dict[str, pathlib.Path] = {}
    errors = []
    for path in files:
        if first.setdefault(path.stem, path) != path:
            errors.append(f"{first[path.stem]} and {path} would have the same outputs")
        for output in _outputs(path, directory):
            if output.resolve() in inputs:
                errors.append(f"{output} would replace an input")
    if errors:
        listed = "".join(f"\n  {error}" for error in errors)
        raise InputError(
            f"the outputs would replace other files:{listed}\n"
            "use another --output, or segment fewer images at once"
        )


def _has_orientation(path: pathlib.Path) -> bool:
    """Returns whether other programs show an image rotated or flipped."""
    try:
        with path.open("rb") as file, PIL.Image.open(file) as image:
            return image.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1
    except Exception:  # a damaged file is reported when it is read
        return False


def _read(
    files: list[pathlib.Path],
) -> Iterator[tuple[pathlib.Path, np.ndarray | InputError]]:
    """Yields each file with its image, or with the error of reading it."""
    images = grain.MapDataset.source(files).map(_read_file)
    return iter(images.to_iter_dataset(_READ_OPTIONS))


def _read_file(path: pathlib.Path) -> tuple[pathlib.Path, np.ndarray | InputError]:
    try:
        return path, data.read_image(path)
    except InputError as error:
        return path, error


if __name__ == "__main__":
    cli.run(main, positional=True)
