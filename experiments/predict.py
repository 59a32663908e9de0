"""Predicts images or videos, with the published protocol of an experiment.

    python -m experiments.predict --checkpoint=PATH --output=DIR FILE... \\
        --config=configs/segmentation.py:nonlocal_r50-d8_512x1024_40k_cityscapes

PATH is the work directory of a training run, a saved step in it, a .safetensors file or a PyTorch
file. FILE is an image (PNG or JPEG) or a video (MP4, ...) of any size, or a directory of them.

A segmentation network predicts images. For street.jpg the command writes to DIR:

    street_labels.png    The label map, with the size of the image. The value of a pixel is the
                         index of its class, from 0, in the order of the dataset's classes. It is a
                         PNG with a palette: other programs show the colors of the classes.
    street_overlay.png   The image in gray, blended with the colors of the classes, with a legend.
                         The legend lists the most frequent classes first, and leaves out those of
                         less than a thousandth of the pixels. Small images are enlarged.

With --multi_scale, the probabilities are averaged over scales and flips. Images are predicted
upright, as other programs show them: their EXIF orientation is applied. Larger images than
--max_megapixels are refused. The memory does not depend on the number of classes.

A classification network predicts videos. For clip.mp4 the command prints the five best classes with
their scores and writes to DIR:

    clip.json            The five classes with their scores, and how they were computed.
    clip_attention.png   Frames of the clip in the center of the video, and where one position of it
                         attends in each frame, in the last non-local block. By default, it is the
                         position that contributes most to the score of the best class.
                         --position=FRAME,ROW,COLUMN chooses another.

The names and the colors of the classes are those that the checkpoint contains. If it contains none,
as PyTorch files do, they are those of the dataset --config.data.name. No data is needed. Only the
names of a folder that you prepared are read from --data-dir.

If two files differ only in their suffix, as street.jpg and street.png do, the outputs keep it:
street.jpg_labels.png. Outputs of an earlier run are replaced. Outputs never replace inputs, and are
never predicted themselves. Other files of a directory are skipped, and listed. If a file
cannot be predicted, the others still are. The errors are listed at the end, and the exit status
is 2.
"""

import collections
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
from absl import flags
from ml_collections import ConfigDict

from experiments import cli
from nonlocal_jax import convert, data
from nonlocal_jax._files import local_path, make_directory, write_json
from nonlocal_jax._progress import progress, report_compilation
from nonlocal_jax.data.images import MAX_MEGAPIXELS, list_files
from nonlocal_jax.errors import InputError, is_out_of_memory, listing
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
_ALLOW_NON_FINITE = cli.define_allow_non_finite()
cli.define_compilation_cache()
_MAX_MEGAPIXELS = flags.DEFINE_float(
    "max_megapixels",
    None,
    f"For images: larger ones are refused. Default: {MAX_MEGAPIXELS}.",
    lower_bound=0,
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
    limit = {} if _MAX_MEGAPIXELS.value is None else {"max_megapixels": _MAX_MEGAPIXELS.value}
    predictor = task.predictor(config, multi_scale=_MULTI_SCALE.value, position=position, **limit)
    kind, endings = predictor.kind, predictor.endings
    if not arguments[1:]:
        raise InputError(f"there are no {kind}s; add at least one {kind} or directory of {kind}s")
    files = list(dict.fromkeys(list_files(arguments[1:], predictor.suffixes, f"{kind}s")))
    dataset = _dataset(_CHECKPOINT.value, config)
    names = _output_names(files)
    directory = local_path(_OUTPUT.value)
    # Of a directory that is also --output, the next run would list the outputs.
    listable = directory.is_dir() and any(ending.endswith(predictor.suffixes) for ending in endings)
    if listable and directory.resolve() in {local_path(a).resolve() for a in arguments[1:]}:
        raise InputError(
            f"--output={directory} is also a directory of {kind}s, and the next run would take the "
            f"outputs for {kind}s; use another directory, such as --output=predicted"
        )
    _check_outputs(names, directory, endings)
    variables = convert.load(
        _CHECKPOINT.value,
        config.model,
        allow_missing_heads=False,
        allow_non_finite=_ALLOW_NON_FINITE.value,
    )
    predict = predictor.predict(variables, dataset)
    make_directory(directory)

    report_compilation("the network")
    errors = []
    contents = _read(files, predictor.read)
    for path, content in progress(contents, len(files), "predicting", unit=kind):
        try:
            if isinstance(content, Exception):
                raise content
            text, outputs = predict(path, content)
        except Exception as error:
            errors.append(_message(error, path))
            continue
        if text:
            print(text)
        for ending, output in outputs.items():
            _write(directory / f"{names[path]}{ending}", output, dataset)
    if written := len(files) - len(errors):
        patterns = " and ".join(f"NAME{ending}" for ending in endings)
        print(f"wrote {patterns} of {written} {kind}{'s' * (written > 1)} to {directory}")
    if errors:
        listed = "".join(f"\n  {error}" for error in errors)
        raise InputError(
            f"cannot predict {len(errors)} of {len(files)} {kind}s:{listed}\n"
            "replace these files, or leave them out"
        )


def _message(error: Exception, path: pathlib.Path) -> str:
    """Returns the message of an error that concerns one file. All others are raised again."""
    if isinstance(error, InputError):
        return str(error)
    if is_out_of_memory(error):
        return f"{path} needs more memory than there is; make it smaller, or cut it into parts"
    raise error


def _write(path: pathlib.Path, output: Any, dataset: data.Dataset) -> None:
    if isinstance(output, Mapping):
        write_json(path, output)
    else:
        data.write_png(path, output, dataset.palette if output.ndim == 2 else None)


def _dataset(checkpoint: str, config: ConfigDict) -> data.Dataset:
    """Returns the classes and colors of a checkpoint, or of the config's dataset if it has none."""
    saved = convert.read_dataset(checkpoint)
    if saved is not None:
        return data.Dataset.from_json(saved)
    try:
        dataset = data.get_dataset(config.data.name, _DATA_DIR.value)
    except InputError as error:
        raise InputError(
            f"{checkpoint} does not contain the names of its classes, so --config.data.name "
            f"must be a known dataset: {error}"
        ) from error
    dataset.check_num_classes(config.model.num_classes)
    return dataset


def _output_names(files: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Returns how the names of the outputs of each file begin: with its stem, if it is unique."""
    stems = collections.Counter(path.stem for path in files)
    return {path: path.stem if stems[path.stem] == 1 else path.name for path in files}


def _check_outputs(
    names: Mapping[pathlib.Path, str], directory: pathlib.Path, endings: Sequence[str]
) -> None:
    """Requires that no output replaces an input or another output, and that none is an input."""
    inputs = {path.resolve() for path in names}
    first: dict[str, pathlib.Path] = {}
    errors = []
    for path, name in names.items():
        if first.setdefault(name, path) != path:
            errors.append(f"{first[name]} and {path} would have the same outputs")
        for output in (directory / f"{name}{ending}" for ending in endings):
            if output.resolve() in inputs:
                errors.append(f"{output} would replace an input")
        for ending in endings:
            others = (f"{path.name.removesuffix(ending)}{other}" for other in endings)
            if path.name.endswith(ending) and all(path.with_name(n).exists() for n in others):
                errors.append(f"{path} is an output of an earlier run")
    if errors:
        raise InputError(
            f"inputs and outputs are mixed up:{listing(errors)}\n"
            "use another directory for --output, and leave earlier outputs out; or predict fewer "
            "files at once"
        )


def _read(
    files: list[pathlib.Path], read: Callable[[pathlib.Path], Any]
) -> Iterator[tuple[pathlib.Path, Any]]:
    """Yields each file with its content, or with the error of reading it."""

    def read_file(path: pathlib.Path) -> tuple[pathlib.Path, Any]:
        try:
            return path, read(path)
        except Exception as error:
            return path, error

    contents = grain.MapDataset.source(files).map(read_file)
    return iter(contents.to_iter_dataset(_READ_OPTIONS))


if __name__ == "__main__":
    cli.run(main, positional=True)
