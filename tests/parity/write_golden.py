"""Writes float64 numbers of mmsegmentation and mmaction2 for narrow networks to tests/golden.

    make golden

The weights come from ``formula``, so the files contain outputs, and for mmaction2 the running
statistics.
"""

import pathlib

import augmentation
import formula
import mmaction2
import mmsegmentation as reference
import narrow
import narrow_video
import numpy as np
import step

from nonlocal_jax import data

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
DIRECTORY = GOLDEN / "mmsegmentation"


def train(row: str, model, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers of one step without the optimizer, and what five steps of SGD change."""
    losses, gradients, statistics = reference.train(model, images, labels)
    config, before = narrow.config(row), reference.state_dict(model)
    reference.sgd(model, config, step.make_batches(config, narrow.SIZE))
    changes = {k: value - before[k] for k, value in reference.state_dict(model).items()}
    arrays = {"gradient": gradients, "statistics": statistics, "change": changes}
    return {f"loss {name}": value for name, value in losses.items()} | {
        f"{kind} {name}": narrow.summary(name, array)
        for kind, named in arrays.items()
        for name, array in named.items()
    }


def augment() -> dict[str, np.ndarray]:
    """What the transforms make of one example with the draws of our augmentation."""
    options = narrow.AUGMENTATION
    transforms = augmentation.Reference(
        "cityscapes", options, scale=options["base_size"], crop_size=options["crop"]
    )
    images, labels = [], []
    for seed in narrow.SEEDS:
        recorder = augmentation.Recorder(seed)
        data.prepare_example(narrow.example(), options, narrow.CHANGES["num_classes"], recorder)
        image, label = transforms(narrow.example(), recorder.drawn)
        images.append(image.round().astype(np.uint8))
        labels.append(label.astype(np.uint8))
    return {"image": np.stack(images), "label": np.stack(labels)}


def video(name: str) -> dict[str, np.ndarray]:
    """Numbers of inference, and of one step without the optimizer."""
    clips = narrow_video.clips(name)
    model = mmaction2.build(name, clips.shape[1], narrow_video.changes(name))
    running = {k: v.numpy().copy() for k, v in model.state_dict().items() if ".running_" in k}
    features, logits = mmaction2.infer(model.double(), clips)
    golden = {
        "running": narrow_video.concatenate(running),
        "features": features[..., ::8],
        "logits": logits,
    }
    if name in narrow_video.TRAINED:
        losses, *trees = mmaction2.train(model, clips, narrow_video.LABELS)
        golden |= losses
        for kind, arrays in zip(("gradients", "statistics"), trees, strict=True):
            summaries = {key: narrow.summary(key, array) for key, array in arrays.items()}
            golden[kind] = narrow_video.concatenate(summaries)
    return golden


def main() -> None:
    for name in narrow_video.NETWORKS:
        path = GOLDEN / "mmaction2" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **video(name))
        print(name, f"{path.stat().st_size / 1024:.0f} KiB")
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    images, image = formula.images(2, *narrow.SIZE), formula.image_uint8(*narrow.SIZE)
    labels = formula.labels(2, *narrow.SIZE, narrow.CHANGES["num_classes"])
    windows = {"crop": narrow.CROP, "stride": narrow.STRIDE}
    for row in narrow.ROWS:
        corners = "769x769" in row
        model = reference.build(row, narrow.CHANGES, corners).double()
        golden = {
            "logits": reference.logits(model, images)[narrow.KEPT],
            "slide": reference.logits(model, images, **windows)[narrow.KEPT],
            "whole_multi_scale": reference.multi_scale(model, image, **narrow.SCALES)[narrow.KEPT],
            "slide_multi_scale": reference.multi_scale(model, image, **narrow.SCALES, **windows)[
                narrow.KEPT
            ],
            **(train(row, model, images, labels) if row in narrow.TRAINED else {}),
        }
        np.savez_compressed(DIRECTORY / f"{row}.npz", **golden)
        print(row, f"{(DIRECTORY / f'{row}.npz').stat().st_size / 1024:.0f} KiB")
    np.savez_compressed(DIRECTORY / "augmentation.npz", **augment())


if __name__ == "__main__":
    main()
