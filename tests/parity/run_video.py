"""Ten full-size video networks against the real mmaction2, number by number.

    make parity            (or: python tests/parity/run_video.py --only=tsm --output=FILE.md)

Each network gets weights from a formula, is saved by PyTorch as a published checkpoint is, read by
``nonlocal_jax.convert`` and compared in float64; then in float32; then exported and read by PyTorch
again. Prints a Markdown table, a row when a network is done, and fails if a bound is broken.
"""

import pathlib

import formula
import jax
import jax.numpy as jnp
import mmaction2
import numpy as np
import torch
from comparison import (
    COMMON_BOUNDS,
    COMMON_LEGEND,
    compare_export,
    compare_training,
    compare_training_float32,
    distance,
    print_table,
)
from step import make_step

import nonlocal_jax as nlj
from configs import video

# name of the experiment: classes; frames, height and width of a clip.
NETWORKS = {
    "mmaction2_i3d_nl_dot_product_r50_32f": (400, (17, 72, 81)),
    "mmaction2_i3d_nl_embedded_gaussian_r50_32f": (101, (32, 64, 64)),
    "mmaction2_i3d_nl_gaussian_r50_32f": (157, (19, 65, 97)),
    "mmaction2_i3d_r50_32f": (174, (21, 81, 64)),
    "mmaction2_c2d_r50_16f": (400, (15, 65, 80)),
    "mmaction2_tsm_r50_8f": (174, (7, 64, 97)),
    "mmaction2_tsm_nl_dot_product_r50_8f": (101, (8, 64, 64)),
    "mmaction2_tsm_nl_embedded_gaussian_r50_8f": (400, (9, 65, 81)),
    "mmaction2_tsm_nl_gaussian_r50_8f": (157, (5, 80, 65)),
    "mmaction2_slowonly_nl_embedded_gaussian_r50_8f": (101, (7, 65, 72)),
}
# What is printed, and its bound.
BOUNDS = {
    "features": 1e-11,
    "logits": 1e-11,
    **COMMON_BOUNDS,
}
LEGEND = f"""
Batches of two clips.

- `features`, the last feature map, and `logits`, float64: max|a - b| / std(b).
- `losses`, float64: relative error of the loss.
{COMMON_LEGEND}"""


def compare(
    name: str, classes: int, size: tuple[int, int, int], directory: pathlib.Path
) -> dict[str, float]:
    config = video.get_config(name)
    # PyTorch normalizes the whole batch.
    config.model.update(num_classes=classes, dropout=0.0, norm_group_size=None)
    reference = mmaction2.build(name, size[0], {"num_classes": classes})
    path = directory / "checkpoint.pth"
    torch.save({"meta": {"epoch": 100}, "state_dict": reference.state_dict()}, path)
    loaded = nlj.convert.load(path, config.model)
    model = nlj.create_model(config.model)

    @jax.jit
    def apply(variables, clips):
        features = model.apply(variables, clips, method=lambda model, x: model.backbone(x)[-1])
        return features, model.apply(variables, clips)

    step = make_step(model, config)
    clips = formula.clips(2, *size)
    labels = np.array([1, classes - 1])
    result = {}

    with jax.enable_x64(True):
        reference.double()
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), loaded)
        actual, expected = apply(wide, clips), mmaction2.infer(reference, clips)
        result["features"], result["logits"] = map(distance, actual, expected)
        theirs = mmaction2.train(reference, clips, labels)
        ours = jax.device_get(step(wide, jnp.asarray(clips), jnp.asarray(labels)))
        result |= compare_training(ours, theirs, config.model)

    reference.float()
    narrow, exact = clips.astype(np.float32), expected[1]
    theirs = np.max(np.abs(mmaction2.infer(reference, narrow)[1] - exact))
    result["f32 logits"] = np.max(np.abs(apply(loaded, narrow)[1] - exact)) / theirs
    ours = jax.device_get(step(loaded, narrow, labels))
    result |= compare_training_float32(ours, mmaction2.train(reference, narrow, labels))

    def logits():
        return mmaction2.infer(reference, narrow)[1]

    exported = directory / "exported.pth"
    return result | compare_export(reference, logits, loaded, config.model, exported)


if __name__ == "__main__":
    summary, columns = __doc__.splitlines()[0], ("classes", "clip")
    print_table(summary, NETWORKS, columns, BOUNDS, compare, LEGEND, "mmaction2 1.2.0")
