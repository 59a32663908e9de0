"""Our clips and views against mmaction2's own transforms, given the same draws.

    PYTHONPATH=. .venv-parity/bin/python tests/parity/video_transforms.py [--draws=100]

``data.prepare_clip`` draws a clip and records the draws. The transforms of mmaction2's own configs
get them in the place of NumPy's and Python's global generators. Frame indices are compared for
every length of a video from 1 to 400, and pixels for videos of several sizes. Fails unless all
indices and all pixels are equal.
"""

import argparse
import sys
import warnings
from collections.abc import Iterable
from typing import Any
from unittest import mock

import cv2
import mmaction2
import numpy as np
from draws import Recorder
from ml_collections import ConfigDict
from mmengine.config import Config

from configs import video
from nonlocal_jax import data
from nonlocal_jax.data import clips

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmaction.datasets.transforms import processing
    from mmaction.registry import TRANSFORMS

LENGTHS = range(1, 401)
SIZES = [(256, 340), (240, 320), (360, 202), (288, 352), (300, 300), (720, 1280)]
# Neither decoding nor the layout of the arrays.
SKIPPED = ("DecordInit", "DecordDecode", "FormatShape", "PackActionInputs")

# The networks of mmaction2 with different transforms. Blocks do not change them.
EXPERIMENTS = [
    "mmaction2_i3d_r50_32f",
    "mmaction2_c2d_r50_16f",
    "mmaction2_tsm_r50_8f",
    "mmaction2_slowonly_nl_embedded_gaussian_r50_8f",
]


class Replay:
    """Gives recorded draws to mmaction2, in their order. Any other request is an error."""

    def __init__(self, drawn: list[tuple[str, tuple, Any]]):
        # A choice among one value, which they need not draw.
        self._drawn = [draw for draw in drawn if not _is_certain(*draw[:2])]

    def _next(self, name: str, *arguments: float) -> Any:
        recorded, given, value = self._drawn.pop(0)
        assert recorded == name, (recorded, name)
        np.testing.assert_allclose(given, arguments, rtol=1e-15)
        return value

    def numpy_randint(self, high: int, size: int | None = None) -> Any:
        value = 0 if high == 1 else self._next("integers", high)
        return value if size is None else np.broadcast_to(value, (size,)).copy()

    def randint(self, low: int, high: int) -> int:
        assert low == 0
        return 0 if high == 0 else int(self._next("integers", high + 1))

    def choice(self, values: list) -> Any:
        return values[0 if len(values) == 1 else self._next("integers", len(values))]

    def rand(self) -> float:
        return self._next("random")

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        values = self._next("uniform", low, high)
        assert values.shape == (size,)
        return values

    def finish(self) -> None:
        assert not self._drawn, self._drawn


def _is_certain(name: str, arguments: tuple) -> bool:
    return name == "integers" and (arguments[0] + 1 if arguments[1:] else 1) == arguments[-1]


def read_pipeline(name: str, split: str) -> list:
    """Returns the transforms of mmaction2's own config: of "train", "val" or "test"."""
    config = Config.fromfile(mmaction2.config_file(name))
    steps = [step for step in config[f"{split}_pipeline"] if step.type not in SKIPPED]
    return [TRANSFORMS.build(step) for step in steps]


def apply(transforms: Iterable, results: dict, drawn: list) -> dict:
    replay = Replay(drawn)
    numbers = {"randint": replay.numpy_randint, "rand": replay.rand, "uniform": replay.uniform}
    with (
        mock.patch.multiple(np.random, **numbers),
        mock.patch.object(processing, "random", replay),
    ):
        for transform in transforms:
            results = transform.transform(results)
    replay.finish()
    return results


def sample(sampler: Any, length: int, drawn: list) -> list[int]:
    """Returns the frames that mmaction2 takes of a video of this length."""
    return apply([sampler], {"total_frames": length, "start_index": 0}, drawn)[
        "frame_inds"
    ].tolist()


def crop(transforms: list, frames: np.ndarray, drawn: list) -> np.ndarray:
    """Returns the pixels of mmaction2's crops of these frames, one crop after the other."""
    results = {
        "imgs": [frame.copy() for frame in frames],
        "img_shape": frames.shape[1:3],
        "modality": "RGB",
    }
    return np.stack(apply(transforms, results, drawn)["imgs"])


def make_video(size: tuple[int, int], frames: int, rng: np.random.Generator) -> data.FrameArray:
    """Frames of smooth noise."""
    coarse = rng.integers(0, 256, (frames, size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return data.FrameArray(np.stack([cv2.resize(frame, size[::-1]) for frame in coarse]))


def compare(name: str, config: ConfigDict, draws: int) -> tuple[int, int, int, int]:
    """Returns the numbers of compared lengths and clips, and of those that differ."""
    sampler, *train = read_pipeline(name, "train")
    lengths = indices = pictures = pixels = 0
    for length in LENGTHS:
        for seed in range(5):
            recorder = Recorder(1000 * length + seed)
            ours = clips.draw_frames(length, config.data, recorder).tolist()
            lengths += 1
            indices += ours != sample(sampler, length, recorder.drawn)
    rng = np.random.default_rng(0)
    for seed in range(draws):
        source = make_video(SIZES[seed % len(SIZES)], int(rng.integers(1, 5)), rng)
        recorder = Recorder(seed)
        ours = data.prepare_clip({"video": source, "label": 0, "id": "a"}, config, recorder)["clip"]
        # The first draw is that of the frames, unless there is no choice.
        first = 0 if recorder.drawn[0][1] == (256, 257) else 1
        numbers = sample(sampler, source.num_frames, recorder.drawn[:first])
        theirs = crop(train, source.read(numbers), recorder.drawn[first:])
        pictures += 1
        pixels += not np.array_equal(ours, theirs)
    one = {"clips": 1, "crops": 1, "short_side": 256, "crop": 224}
    for pipeline, options in (("test", {}), ("val", one)):
        sampler, *test = read_pipeline(name, pipeline)
        config.evaluation.update(options)
        for length in LENGTHS:
            ours = clips.view_frames(length, config).ravel().tolist()
            lengths += 1
            indices += ours != sample(sampler, length, [])
        for size in SIZES:
            source = make_video(size, 3, rng)
            count = config.evaluation.clips
            frames = source.read(sample(sampler, 3, []))
            views = data.read_views(source, config)
            theirs = crop(test, frames, [])
            # Theirs are crop after crop, and each crop has all clips.
            theirs = theirs.reshape(-1, count, config.data.frames, *theirs.shape[1:])
            if config.evaluation.crops == 3:  # both ends, then the center
                theirs = theirs[[0, 2, 1]]
            pictures += 1
            pixels += not np.array_equal(views, theirs.swapaxes(0, 1).reshape(views.shape))
    return lengths, indices, pictures, pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=100, help="number of clips per experiment")
    draws = parser.parse_args().draws
    print("| transforms of mmaction2 | lists of frames | that differ | videos | that differ |")
    print("|---|" + "---:|" * 4)
    broken = []
    for name in EXPERIMENTS:
        counts = compare(name, video.get_config(name), draws)
        print(f"| {name} | " + " | ".join(f"{count:,}" for count in counts) + " |", flush=True)
        if counts[1] or counts[3]:
            broken.append(name)
    if broken:
        sys.exit("clips or views differ: " + ", ".join(broken))


if __name__ == "__main__":
    main()
