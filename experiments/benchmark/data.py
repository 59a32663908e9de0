"""Times the preparation of training examples: CPU milliseconds per image, on one thread.

    python -m experiments.benchmark.data

The images are like those of Cityscapes: PNG files of 1024x2048 pixels and about 3 MB. The
augmentation is that of the published experiments, with crops of 512x1024 pixels. The files are in
memory, so reading them is not measured.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from absl import flags

from experiments import cli
from nonlocal_jax import data
from nonlocal_jax.configs import segmentation
from nonlocal_jax.data import augment
from nonlocal_jax.data.images import decode_image, decode_label, encode_png

_IMAGES = flags.DEFINE_integer("images", 4, "Number of images.", lower_bound=1)
_DRAWS = flags.DEFINE_integer("draws", 10, "Number of draws for each image.", lower_bound=1)
_CLASSES = 19


class Pictures:
    """Noisy pictures with smooth regions, as PNG files in memory."""

    name = "benchmark"

    def __init__(self, number: int, size: tuple[int, int] = (1024, 2048)):
        rng = np.random.default_rng(0)
        self._files = []
        for _ in range(number):
            regions = rng.integers(0, _CLASSES, (16, 32), np.uint8)
            label = cv2.resize(regions, size[::-1], interpolation=cv2.INTER_NEAREST)
            colors = rng.integers(30, 226, (16, 32, 3), np.uint8)
            image = cv2.resize(colors, size[::-1], interpolation=cv2.INTER_CUBIC).astype(int)
            image += rng.normal(0, 2.5, image.shape).round().astype(int)
            files = encode_png(image.clip(0, 255).astype(np.uint8)), encode_png(label)
            self._files.append(files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self._files[index]
        return {
            "image": decode_image(image, "the image"),
            "label": decode_label(label, "the label"),
            "id": index,
        }

    def file_size(self) -> float:
        """Returns the mean size of an image in MB."""
        return sum(len(image) for image, _ in self._files) / len(self) / 1e6


def resize_and_crop(
    image: np.ndarray, label: np.ndarray, config: Mapping[str, Any], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Does what ``augment.random_resized_crop`` does, but resizes the whole image."""
    size = augment.draw_size(label.shape, config["base_size"], config["scale_range"], rng)
    image = data.resize_image(image, size)
    label = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)
    options = config["crop"], config["category_max_ratio"], rng
    window = augment.draw_window(size, label.__getitem__, *options)
    return image[window], label[window]


def milliseconds(run: Callable[..., object], examples: Sequence[Mapping[str, Any]]) -> float:
    """Returns the mean CPU time of ``run(example, rng)``. Each example has several draws."""
    run(examples[0], np.random.default_rng(0))
    start = time.process_time()
    for index in range(len(examples)):
        for draw in range(_DRAWS.value):
            run(examples[index], np.random.default_rng((index, draw)))
    return 1e3 * (time.process_time() - start) / (len(examples) * _DRAWS.value)


def main(_: list[str]) -> None:
    cv2.setNumThreads(0)
    config = segmentation.get_config("nonlocal_r50-d8_512x1024_40k_cityscapes").data.to_dict()

    # The later steps, without resizing and cropping.
    later = config | {"base_size": config["crop"], "scale_range": (1.0, 1.0)}

    def whole(example, rng):
        data.check_example(example, _CLASSES)
        image, label = resize_and_crop(example["image"], example["label"], config, rng)
        augment.augment(image, label, later, rng)

    def fast(example, rng):
        data.prepare_example(example, config, _CLASSES, rng)

    def part(step, options=config):
        return lambda example, rng: step(example["image"], example["label"], options, rng)

    files = Pictures(_IMAGES.value)
    decoded = [files[index] for index in range(len(files))]
    height, width = config["crop"]
    cropped = [
        {field: example[field][:height, :width].copy() for field in ("image", "label")}
        for example in decoded
    ]
    with tempfile.TemporaryDirectory() as directory:
        cached = data.cached(files, directory)
        times = {
            "decode image and label map": milliseconds(lambda *_: None, files),
            "check the example": milliseconds(
                lambda example, _: data.check_example(example, _CLASSES), decoded
            ),
            "resize and crop, whole image": milliseconds(part(resize_and_crop), decoded),
            "resize and crop, crop only": milliseconds(part(augment.random_resized_crop), decoded),
            "flip and photometric distortion": milliseconds(part(augment.augment, later), cropped),
            "all, from files, whole image": milliseconds(whole, files),
            "all, from files, crop only": milliseconds(fast, files),
            "all, from the cache, crop only": milliseconds(fast, cached),
        }
    print(f"{len(files)} images, PNG files of {files.file_size():.1f} MB, {_DRAWS.value} draws\n")
    print("| | ms per image | images per second |\n|---|---:|---:|")
    for name, time_ in times.items():
        print(f"| {name} | {time_:.1f} | {1e3 / time_:.0f} |")


if __name__ == "__main__":
    cli.run(main)
