"""How fast training images are made, beside mmsegmentation, on one thread each.

    PYTHONPATH=. .venv-parity/bin/python tests/parity/throughput.py [--output=FILE.md]

The images are enlarged photographs with noise: PNG files of 1024x2048 pixels and about 3 MB, as in
Cityscapes, with crops of 512x1024. mmsegmentation runs its own training transforms, from
``LoadImageFromFile`` to ``PackSegInputs``. We run ``prepare_example`` on the examples of a prepared
dataset, and on those of a cache. The three take turns. The files are in the page cache. Fails if we
are slower than mmsegmentation, or with the cache not three times as fast.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

import cv2
import mmsegmentation
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmseg.registry import TRANSFORMS
from PIL import Image
from sklearn.datasets import load_sample_images

from configs import segmentation
from nonlocal_jax import data

SIZE = 1024, 2048
NUMBER = 8
CLASSES = 19
# The least that mmsegmentation's time is, divided by ours.
BOUNDS = {"mmsegmentation": 1.0, "ours, from records": 1.0, "ours, from the cache": 3.0}


def write_files(directory: pathlib.Path) -> float:
    """Writes images and label maps as PNG, and returns the mean size of an image in MB."""
    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    sizes = []
    for folder in ("images", "masks"):
        (directory / folder).mkdir()
    for index in range(NUMBER + 1):
        photo = photos[index % len(photos)]
        height = photo.shape[1] // 2
        top = rng.integers(photo.shape[0] - height + 1)
        part = cv2.resize(photo[top : top + height], SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        image = (part + rng.normal(0, 1.2, part.shape)).round().clip(0, 255).astype(np.uint8)
        # Regions with boundaries like those of objects, some of them ignored.
        label = cv2.medianBlur(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), 31) // 13
        label = np.where(label >= CLASSES, 255, label).astype(np.uint8)
        path = directory / "images" / f"{index}.png"
        Image.fromarray(image).save(path)
        Image.fromarray(label).save(directory / "masks" / f"{index}.png")
        sizes.append(path.stat().st_size / 1e6)
    rows = "".join(f"{value},class {value}\n" for value in range(CLASSES))
    (directory / "classes.csv").write_text(f"value,name\n{rows}255,ignore\n")
    (directory / "val.txt").write_text(f"{NUMBER}\n")  # a prepared dataset needs this split
    return statistics.mean(sizes)


def their_pipeline(directory: pathlib.Path) -> Callable[[int], object]:
    path = mmsegmentation.CONFIGS / "_base_" / "datasets" / "cityscapes.py"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = Compose([TRANSFORMS.build(step) for step in Config.fromfile(path).train_pipeline])
    return lambda index: run(
        {
            "img_path": str(directory / "images" / f"{index}.png"),
            "seg_map_path": str(directory / "masks" / f"{index}.png"),
            "reduce_zero_label": False,
            "seg_fields": [],
        }
    )


def our_pipeline(source: data.Source) -> Callable[[int], object]:
    options = segmentation.get_config("nonlocal_r50-d8_512x1024_40k_cityscapes").data
    rng = np.random.default_rng(0)
    return lambda index: data.prepare_example(source[index], options, CLASSES, rng)


def milliseconds(run: Callable[[int], object]) -> float:
    """The mean CPU time of an image."""
    start = time.process_time()
    for index in range(NUMBER):
        run(index)
    return 1e3 * (time.process_time() - start) / NUMBER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=15, help="number of turns")
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file for the table")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    np.random.seed(0)  # noqa: NPY002 - the generator of mmsegmentation
    with tempfile.TemporaryDirectory() as temporary:
        files = pathlib.Path(temporary, "files")
        files.mkdir()
        size = write_files(files)
        data.prepare_dataset("folder", files, f"{temporary}/data", name="photographs")
        source = data.load_source("photographs", "train", f"{temporary}/data")
        cached = data.cached(source, f"{temporary}/cache")
        runs = (their_pipeline(files), our_pipeline(source), our_pipeline(cached))
        turns = []
        for turn in range(arguments.turns + 1):
            times = [milliseconds(run) for run in runs]
            turns += [times] if turn else []  # the first turn reads the files
    table = np.array(turns)
    lines = [
        f"{NUMBER} PNG files of {SIZE[0]}x{SIZE[1]} pixels, {size:.1f} MB on average. Medians of "
        f"{arguments.turns} turns; the ratio is that of the times of a turn.\n",
        "| | CPU ms per image | mmsegmentation's time / ours |",
        "|---|---:|---:|",
    ]
    broken = []
    for (name, bound), times in zip(BOUNDS.items(), table.T, strict=True):
        ratio = float(np.median(table[:, 0] / times))
        lines.append(f"| {name} | {np.median(times):.1f} | {ratio:.2f} |")
        if not ratio >= bound:
            broken.append(name)
    print("\n".join(lines))
    if arguments.output:
        versions = (
            f"opencv {cv2.__version__}, torch {torch.__version__}, mmsegmentation 1.2.2, "
            f"numpy {np.__version__}"
        )
        arguments.output.write_text("\n".join([*lines, "", f"Measured with {versions}.", ""]))
    if broken:
        sys.exit("too slow: " + ", ".join(broken))


if __name__ == "__main__":
    main()
