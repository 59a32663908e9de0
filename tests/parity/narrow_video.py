"""Narrow video networks of the same code as the published ones, and their weights."""

from collections.abc import Mapping
from typing import Any

import formula
import numpy as np
from ml_collections import ConfigDict

from configs import video

# name of the experiment: sizes of the stages; frames, height and width of a clip.
NETWORKS = {
    "mmaction2_i3d_nl_embedded_gaussian_r50_32f": ((1, 2, 1, 1), (17, 64, 65)),
    "mmaction2_c2d_r50_16f": ((1, 1, 1, 1), (15, 64, 65)),
    "mmaction2_tsm_r50_8f": ((1, 1, 1, 1), (7, 64, 65)),
    "mmaction2_tsm_nl_dot_product_r50_8f": ((1, 1, 1, 1), (8, 65, 64)),
}
# Those that are also trained.
TRAINED = [name for name in NETWORKS if "_nl_" in name]
LABELS = np.array([1, 3])


def changes(name: str) -> dict[str, Any]:
    """What differs from the published network."""
    return {"num_classes": 5, "width": 8, "stage_sizes": NETWORKS[name][0]}


def clips(name: str) -> np.ndarray:
    """A batch of two clips."""
    return formula.clips(2, *NETWORKS[name][1])


def config(name: str) -> ConfigDict:
    """The config of a narrow network."""
    config = video.get_config(name)
    # PyTorch normalizes the whole batch.
    config.model.update(changes(name), dropout=0.0, norm_group_size=None)
    stages = enumerate(config.model.stage_sizes, start=1)
    places = [f"layer{stage}.{index}" for stage, size in stages for index in range(size)]
    for option in ("block_at", "inflate_at", "shift_at"):
        config.model[option] = tuple(at for at in config.model[option] if at in places)
    return config


def state_dict(
    shapes: Mapping[str, tuple[int, ...]], statistics: np.ndarray
) -> dict[str, np.ndarray]:
    """Weights from the formula, and these running statistics, in the order of their names."""
    weights = formula.state_dict(shapes)
    names = sorted(name for name in shapes if ".running_" in name)
    ends = np.cumsum([np.prod(shapes[name]) for name in names])
    weights.update(zip(names, np.split(statistics, ends[:-1]), strict=True))
    return weights


def concatenate(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """All arrays in the order of their names, one behind the other."""
    return np.concatenate([arrays[name].reshape(-1) for name in sorted(arrays)])
