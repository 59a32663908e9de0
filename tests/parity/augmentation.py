"""Our augmentation against mmsegmentation's own transforms, given the same draws.

    PYTHONPATH=. .venv-parity/bin/python tests/parity/augmentation.py [--draws=200]

``data.prepare_example`` augments an image and records what it draws. mmsegmentation's training
transforms and its preprocessor get these draws in the place of NumPy's global generator. Gray
levels are compared after mmsegmentation's normalization is undone. Fails if an image differs by
more than one gray level, or if a label differs.
"""

import argparse
import sys
import warnings
from collections.abc import Mapping
from typing import Any
from unittest import mock

import mmsegmentation
import numpy as np
import torch
from draws import Recorder
from mmengine.config import Config
from mmseg.datasets.transforms import transforms as their_transforms
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.registry import TRANSFORMS
from sklearn.datasets import load_sample_image

from configs import segmentation
from nonlocal_jax import data
from nonlocal_jax.data.images import resize_image

# name of our experiment, mmsegmentation's configuration of its data, sizes of images
DATASETS = [
    ("dnl_r50-d8_512x1024_40k_cityscapes", "cityscapes", [(1024, 2048)]),
    ("dnl_r50-d8_769x769_40k_cityscapes", "cityscapes_769x769", [(1024, 2048)]),
    ("dnl_r50-d8_512x512_80k_ade20k", "ade20k", [(512, 683), (600, 450), (300, 1100)]),
    ("dnl_r101-d8_480x480_40k_pascal-context-59", "pascal_context_59", [(375, 500), (500, 333)]),
]
COLUMNS = ("draws", "largest difference", "pixels that differ, %", "labels that differ")


class Replay:
    """In the place of ``numpy.random``: gives recorded draws to mmsegmentation, in their order.

    A request that is not the one that was recorded next is an error.
    """

    def __init__(self, drawn: list[tuple[str, tuple, Any]]):
        # A choice among one place of a crop. mmsegmentation also makes it where nothing is cropped.
        self._drawn = [draw for draw in drawn if draw[:2] != ("integers", (1,))]
        # The second coin of the photometric distortion says when the contrast is changed. Ours is 1
        # for last, theirs for first. The first coin is followed by a number if it is 1.
        start = 1 + next(i for i, draw in enumerate(self._drawn) if draw[0] == "random")
        at = start + 1 + self._drawn[start][2]
        self._drawn[at] = (*self._drawn[at][:2], 1 - self._drawn[at][2])

    def _next(self, name: str, *arguments: float) -> Any:
        recorded, given, value = self._drawn.pop(0)
        assert (recorded, given) == (name, arguments), (recorded, given, name, arguments)
        return value

    def random_sample(self) -> float:
        low, high = self._drawn[0][1]
        return (self._next("uniform", low, high) - low) / (high - low)

    def randint(self, low: int, high: int | None = None) -> int:
        if high is None or low < 0:  # in the photometric distortion
            return self._next("integers", *((low,) if high is None else (low, high)))
        return 0 if high == 1 else int(self._next("integers", high))

    def choice(self, directions: list, p: list[float]) -> Any:
        return directions[0] if self._next("random") < p[0] else directions[1]

    def uniform(self, low: float, high: float) -> float:
        return self._next("uniform", low, high)

    def finish(self) -> None:
        assert not self._drawn, self._drawn


def make_example(height: int, width: int, classes: int, rng: np.random.Generator) -> dict:
    """A part of a photograph, and labels in blotches of several sizes, with ignored ones."""
    photo = load_sample_image(("china.jpg", "flower.jpg")[rng.integers(2)])
    image = resize_image(photo, (height, width))
    noise = rng.normal(0, 4, image.shape)
    image = (image + noise).clip(0, 255).astype(np.uint8)
    coarse = 2 ** rng.integers(3, 10)
    values = rng.integers(0, classes + 1, (-(-height // coarse), -(-width // coarse)))
    label = values.repeat(coarse, 0).repeat(coarse, 1)[:height, :width]
    label = np.where(label == classes, 255, label).astype(np.uint8)
    return {"image": image, "label": label, "id": "example"}


class Reference:
    """The training transforms of a dataset of mmsegmentation, and its preprocessor."""

    def __init__(self, name: str, options: Mapping[str, Any], **changes: Any):
        """Takes mean, std and crop from our options. ``changes`` are those of all transforms."""
        path = mmsegmentation.CONFIGS / "_base_" / "datasets" / f"{name}.py"
        steps = [s for s in Config.fromfile(path).train_pipeline if not s.type.startswith("Load")]
        for step in steps:
            step.update({key: value for key, value in changes.items() if key in step})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._transforms = [TRANSFORMS.build(step) for step in steps]
        self._preprocess = SegDataPreProcessor(
            mean=list(options["mean"]),
            std=list(options["std"]),
            bgr_to_rgb=True,
            size=tuple(options["crop"]),
            pad_val=0,
            seg_pad_val=255,
        )
        self._scale = np.array(options["std"]), np.array(options["mean"])

    def __call__(self, example: dict, drawn: list) -> tuple[np.ndarray, np.ndarray]:
        """Gray levels, float, and labels of an augmented example."""
        results = {
            "img": np.ascontiguousarray(example["image"][..., ::-1]),
            "gt_seg_map": example["label"].copy(),
            "seg_fields": ["gt_seg_map"],
        }
        replay = Replay(drawn)
        names = ("random_sample", "randint", "choice", "uniform")
        numbers = {name: getattr(replay, name) for name in names}
        # Two modules use np.random, and the photometric distortion its own name for it.
        with (
            mock.patch.multiple(np.random, **numbers),
            mock.patch.object(their_transforms, "random", replay),
        ):
            for transform in self._transforms:
                results = transform(results)
        replay.finish()
        batch = {"inputs": [results["inputs"]], "data_samples": [results["data_samples"]]}
        batch = self._preprocess(batch, training=True)
        std, mean = self._scale
        image = batch["inputs"][0].double().permute(1, 2, 0).numpy() * std + mean
        return image, batch["data_samples"][0].gt_sem_seg.data[0].numpy()


def compare(name: str, theirs: str, sizes: list, draws: int) -> dict[str, float]:
    config = segmentation.get_config(name)
    classes = config.model.num_classes
    reference = Reference(theirs, config.data)
    rng = np.random.default_rng(0)
    largest, differing, labels = 0.0, [], 0
    for seed in range(draws):
        example = make_example(*sizes[seed % len(sizes)], classes, rng)
        recorder = Recorder(seed)
        ours = data.prepare_example(example, config.data, classes, recorder)
        image, label = reference(example, recorder.drawn)
        difference = np.abs(ours["image"] - image)
        # Less than 0.5 is a rounding error: of the normalization, or of the color of the padding.
        largest = max(largest, np.max(difference.round()))
        differing.append(np.mean(difference >= 0.5))
        labels += int(np.sum(ours["label"] != label))
    values = (draws, largest, 100 * np.mean(differing), labels)
    return dict(zip(COLUMNS, values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=200, help="number of augmented images")
    draws = parser.parse_args().draws
    torch.set_num_threads(1)
    print(f"| data of mmsegmentation | {' | '.join(COLUMNS)} |\n|---|" + "---:|" * len(COLUMNS))
    broken = []
    for name, theirs, sizes in DATASETS:
        result = compare(name, theirs, sizes, -(-draws // len(DATASETS)))
        print(f"| {theirs} | " + " | ".join(f"{v:.3g}" for v in result.values()) + " |", flush=True)
        if not (result["largest difference"] <= 1 and result["labels that differ"] == 0):
            broken.append(theirs)
    if broken:
        sys.exit("the augmentation differs: " + ", ".join(broken))


if __name__ == "__main__":
    main()
