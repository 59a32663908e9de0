"""Segments images: a label map and a colored overlay for each.

    python -m experiments.predict --checkpoint=PATH --output=DIR IMAGE... \\
        --config=configs/segmentation.py:nonlocal_r50-d8_512x1024_40k_cityscapes

PATH is a training work directory, one saved step in it, a .safetensors or a .pth file. IMAGE is
a PNG or JPEG of any size, or a directory of them. For street.jpg DIR gets

    street_labels.png    8-bit gray at the size of the image: the value of a pixel is the index of
                         its class, from 0, in the order of the dataset's classes
    street_overlay.png   the image tinted in the colors of the classes, a legend underneath

The protocol is the published one of the experiment; --multi_scale averages over its scales and
flips. An image that cannot be read does not stop the others: it is reported at the end, and the
exit status is 2.
"""

import collections
import pathlib
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from experiments import cli
from nonlocal_jax import convert, create_model, data, evaluation, visualize
from nonlocal_jax._files import make_directory
from nonlocal_jax._progress import progress
from nonlocal_jax.errors import InputError

_CONFIG = cli.define_config()
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "work directory, saved step, .safetensors or .pth file", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "directory for the pictures", required=True)
_MULTI_SCALE = flags.DEFINE_bool("multi_scale", False, "average over scales and flips")

# Images read by threads while the device works.
_READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def main(arguments: list[str]) -> None:
    config = _CONFIG.value
    files = _list_files(arguments[1:])
    info = data.get_info(config.data.name)
    info.check_num_classes(config.model.num_classes)
    directory = make_directory(_OUTPUT.value)
    variables = convert.load(_CHECKPOINT.value, config.model)
    mesh = evaluation.inference_mesh(config)
    apply_fn = evaluation.inference_fn(create_model(config.model), variables, mesh)
    protocol = evaluation.inference_protocol(config, multi_scale=_MULTI_SCALE.value)

    errors = []
    for path, image in progress(_read(files), len(files), "predicting"):
        if isinstance(image, InputError):
            errors.append(image)
            continue
        labels = evaluation.predict(apply_fn, image, protocol)
        overlay = visualize.color_overlay(image, labels, info.palette)
        overlay = visualize.add_legend(overlay, labels, info.classes, info.palette)
        data.write_png(directory / f"{path.stem}_labels.png", labels)
        data.write_png(directory / f"{path.stem}_overlay.png", overlay)
    if errors:
        done = len(files) - len(errors)
        listed = "".join(f"\n  {error}" for error in errors)
        raise InputError(f"{done} of {len(files)} images done; not the others:{listed}")


def _list_files(arguments: list[str]) -> list[pathlib.Path]:
    if not arguments:
        raise InputError("name at least one image, or a directory of images")
    files = list(dict.fromkeys(data.list_images(arguments)))
    by_stem = collections.defaultdict(list)
    for path in files:
        by_stem[path.stem].append(str(path))
    for paths in by_stem.values():
        if len(paths) > 1:
            raise InputError(
                f"the pictures of {' and '.join(paths)} would have the same names: "
                "rename one, or run them apart with another --output"
            )
    return files


def _read(
    files: list[pathlib.Path],
) -> Iterator[tuple[pathlib.Path, np.ndarray | InputError]]:
    """Each file with its image, or with the error of reading it."""
    images = grain.MapDataset.source(files).map(_read_file)
    return iter(images.to_iter_dataset(_READ_OPTIONS))


def _read_file(path: pathlib.Path) -> tuple[pathlib.Path, np.ndarray | InputError]:
    try:
        return path, data.read_image(path)
    except InputError as error:
        return path, error


if __name__ == "__main__":
    cli.run(main, positional=True)
