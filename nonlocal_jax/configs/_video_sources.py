"""What the sources of video experiments do differently, and what their networks share."""

from collections.abc import Iterable, Mapping
from typing import Any

Leaves = dict[str, Any]  # config fields by their full names

NORMS = r"(bn\d?|norm)/"  # paths of the parameters of norms
STAGE_SIZES = {"r50": (3, 4, 6, 3), "r101": (3, 4, 23, 3)}

_EPOCH = 240_000  # videos of Kinetics-400
_GRAY = {"data.mean": (114.75,) * 3, "data.std": (57.375,) * 3}


def _steps(epochs: int, batch_size: int) -> int:
    return epochs * _EPOCH // batch_size


def _step_schedule(epochs: int, drops: tuple[int, ...], batch_size: int, warmup: int = 0) -> Leaves:
    """Returns a schedule in steps, given the epochs in which the learning rate drops to a tenth."""
    return {
        "data.batch_size": batch_size,
        "steps": _steps(epochs, batch_size),
        "schedule.kind": "step",
        "schedule.boundaries": tuple(_steps(drop, batch_size) for drop in drops),
        "schedule.warmup_steps": _steps(warmup, batch_size),
    }


# What differs between the sources. Fields that are missing have the values of `_video.py`. Options
# of blocks count for networks whose blocks have them.
_CAFFE2: Leaves = {
    **_GRAY,
    "recipe": "video-nonlocal-net",
    "model.conv1_stride": 2,
    "model.pool1_frames": 2,
    "model.pool1_stride": 2,
    "model.pool1_padding": 0,
    "model.pool2_frames": 2,
    "model.block_use_scale": True,
    "model.block_sub_sample": "before",
    "model.norm_group_size": 8,
    "data.interval": 2,
    "data.short_side": (256, 320),
    "steps": 400_000,
    "schedule.kind": "step",
    "schedule.boundaries": (150_000, 300_000),
    "optimizer.learning_rate": 0.01,
    "optimizer.nesterov": True,
    "optimizer.no_decay": (NORMS,),
    "train.precise_batch_norm": 200,
    "evaluation.window": (0, 7, 7),
}
_SOURCES: Mapping[str, Leaves] = {
    "caffe2": _CAFFE2,
    "caffe2_fast": {
        **_CAFFE2,
        "model.conv1_stride": 1,
        "model.pool1_frames": 1,
        "model.pool1_stride": 1,
        "data.interval": 8,
    },
    "mmaction2": {
        "recipe": "mmaction2 1.x; the warm-up rises in every step instead of every epoch",
        "model.block_use_scale": False,
        "model.block_sub_sample": "after",
        "data.long_side": "round",
        "data.crop_scales": (1.0, 0.875, 0.75, 0.66),
        "data.crop_scale_gap": 1,
        "evaluation.starts": "even",
    },
    "mit": {
        "recipe": "temporal-shift-module; batch norm normalizes the global batch",
        "model.block_use_scale": False,
        "model.block_sub_sample": "after",
        "data.crop_scales": (1.0, 0.875, 0.75, 0.66),
        "data.crop_scale_gap": 1,
        "data.crop_positions": 13,
        "optimizer.learning_rate": 0.02,
        "optimizer.clip_global_norm": 20.0,
        "evaluation.average": "logits",
    },
    "pyslowfast": {
        **_GRAY,
        "recipe": "PySlowFast; the warm-up multiplies the cosine; clips of the test start at k/9 "
        "instead of k/10 of the last start",
        "model.pool2_frames": 2,
        "model.block_use_scale": True,
        "model.block_sub_sample": "before",
        "model.norm_group_size": 8,
        "data.interval": 8,
        "data.short_side": (256, 320),
        "steps": _steps(196, 64),
        "schedule.kind": "cosine",
        "schedule.warmup_steps": _steps(34, 64),
        "optimizer.learning_rate": 0.1,
        "optimizer.nesterov": True,
        "optimizer.no_decay": (NORMS,),
        "train.precise_batch_norm": 200,
        "evaluation.starts": "even",
        "evaluation.window": (0, 7, 7),
    },
}

# What differs between the networks of a source.
_SEGMENTS: Leaves = {
    "data.sampling": "segments",
    "evaluation.clips": 1,
    "evaluation.starts": "segments",
    "evaluation.crop": 224,
}
_RECIPES: Mapping[tuple[str, str], Leaves] = {
    ("mmaction2", "i3d"): {
        **_step_schedule(100, (40, 80), batch_size=64),
        "model.pool1_stride": 2,
        "model.conv1_stride": 2,
        "model.pool2_frames": 2,
        "model.norm_group_size": 8,
        "data.crop_scales": (1.0, 0.8),
        "data.crop_scale_gap": 0,
        "optimizer.learning_rate": 0.01,
        "optimizer.clip_global_norm": 40.0,
    },
    ("mmaction2", "c2d"): {
        **_step_schedule(100, (40, 80), batch_size=256),
        "model.pool1_padding": 0,
        "model.pool2_frames": 2,
        "model.norm_group_size": 32,
        "data.interval": 4,
        "optimizer.learning_rate": 0.01,
        "optimizer.clip_global_norm": 40.0,
        "evaluation.short_side": 224,
        "evaluation.crop": 224,
    },
    ("mmaction2", "tsm"): {
        **_SEGMENTS,
        **_step_schedule(50, (25, 45), batch_size=128, warmup=5),
        "model.norm_group_size": 16,
        "data.crop_positions": 13,
        "optimizer.learning_rate": 0.02,
        "optimizer.clip_global_norm": 20.0,
        "evaluation.crops": 10,
    },
    ("mmaction2", "slowonly"): {
        **_step_schedule(150, (90, 130), batch_size=128, warmup=10),
        "model.norm_group_size": 16,
        "data.interval": 8,
        "data.crop_scales": (),
        "data.crop_scale_gap": 0,
        "data.crop_area": (0.08, 1.0),
        "optimizer.learning_rate": 0.02,
        "optimizer.clip_global_norm": 40.0,
    },
    ("mit", "tsm"): {
        **_SEGMENTS,
        **_step_schedule(50, (20, 40), batch_size=128),
        "evaluation.crops": 1,
    },
    ("mit", "tsm_dense"): {
        "recipe": "temporal-shift-module; batch norm normalizes the global batch; the rate drops "
        "at twice the epochs of the network without dense, because its own are not published; the "
        "clips of the test are spread over 7 more frames",
        **_step_schedule(100, (40, 80), batch_size=128),
        "data.interval": 8,
        "evaluation.starts": "even",
    },
    ("pyslowfast", "c2d"): {"model.pool2_frames": 1},
}


def places_of(stage: int, indices: Iterable[int]) -> tuple[str, ...]:
    """Returns the names of residual blocks, such as "layer2.0"."""
    return tuple(f"layer{stage}.{index}" for index in indices)


def _network(kind: str, depth: str) -> Leaves:
    """Returns what a network is in all sources."""
    sizes = STAGE_SIZES[depth]
    leaves = {"model.stage_sizes": sizes}
    if kind == "i3d":
        inflated = [range(3), range(0, sizes[1], 2), range(0, sizes[2], 2), (1,)]
        places = [places_of(stage, indices) for stage, indices in enumerate(inflated, start=1)]
        leaves |= {"model.conv1_frames": 5, "model.inflate_at": sum(places, ())}
    elif kind == "slowonly":
        places = places_of(3, range(sizes[2])) + places_of(4, range(sizes[3]))
        leaves |= {"model.inflate_at": places}
    elif kind in ("tsm", "tsm_dense"):
        places = [places_of(stage, range(size)) for stage, size in enumerate(sizes, start=1)]
        leaves |= {
            "model.shift_at": sum(places, ()),
            "model.dropout_per_frame": True,
            "model.head_std": 0.001,
            "optimizer.no_decay": ("/scale$", "/bias$"),
            "optimizer.lr_factors": (("classifier/kernel$", 5.0), ("classifier/bias$", 10.0)),
        }
    return leaves


def source_leaves(source: str, network: str, depth: str) -> Leaves:
    """Returns the fields of a network without blocks, as a source trains and evaluates it.

    Args:
      source: "caffe2", "caffe2_fast" (8 frames), "mmaction2", "mit" or "pyslowfast".
      network: "c2d", "i3d", "slowonly", "tsm" or "tsm_dense".
      depth: "r50" or "r101".
    """
    return _SOURCES[source] | _network(network, depth) | _RECIPES.get((source, network), {})
