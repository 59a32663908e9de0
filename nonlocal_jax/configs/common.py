"""The config fields and defaults that experiments of all tasks share."""

import difflib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference, config_dict

from nonlocal_jax.errors import InputError

# Mean and standard deviation of ImageNet, RGB, in 8-bit gray levels.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def base_config(
    name: str, *, task: str, steps: int, learning_rate: float, weight_decay: float
) -> ConfigDict:
    """Returns a config without ``model``, ``loss`` and ``evaluation``.

    The task adds these sections, and fields to ``data``. Every field is present, including fields
    that few experiments use, so that the command line can set it.
    ``nonlocal_jax.train.create_optimizer`` describes ``optimizer`` and ``schedule``.
    """
    return ConfigDict(
        {
            "name": name,
            "task": task,
            "seed": 0,
            "steps": steps,
            "data": {
                # Number of processes that prepare the batches. 0: threads of the main process.
                "workers": 0,
                # Directory of decoded examples, or None to decode an example whenever it is read.
                "cache": config_dict.placeholder(str),
            },
            "optimizer": {
                "learning_rate": learning_rate,
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": weight_decay,
                # A positive number, or None for no clipping.
                "clip_global_norm": config_dict.placeholder(float),
                # Regular expressions that are searched for in the paths of the parameters, such as
                # "backbone/layer1_0/conv1/kernel". lr_factors has pairs of an expression and a
                # number.
                "no_decay": (),
                "lr_factors": (),
                "frozen": (),
            },
            "schedule": {
                "kind": "poly",
                # For kind "poly".
                "power": 0.9,
                "end": 1e-4,
                # For kind "step": the rate is multiplied by the factor at each of these steps.
                "boundaries": (),
                "factor": 0.1,
                # For all kinds: the rate rises linearly from this fraction of itself.
                "warmup_steps": 0,
                "warmup_factor": 0.1,
            },
            "mesh": {
                # Number of devices that share each image or clip.
                "context": 1,
                # Number of devices that share the parameters and the state of the optimizer.
                "fsdp": 1,
                # How arrays of the state are split, before the default of fsdp: pairs of a regular
                # expression for their paths and a tuple, with a mesh axis or None for each axis of
                # the array, such as ("conv_cat/conv/kernel", (None, None, None, "fsdp")).
                "rules": (),
            },
            "train": {
                # Activations that the backward pass computes again: "none", those of the residual
                # "blocks", or those of all parts of the network ("full").
                "remat": "none",
                # Number of micro-batches that each batch is computed in.
                "accumulate": 1,
                # Decay of an exponential moving average of the variables, which is what is
                # evaluated, or None.
                "ema": config_dict.placeholder(float),
                "log_every": 50,
                "checkpoint_every": max(steps // 10, 1),
                "evaluate_every": max(steps // 10, 1),
            },
            # Where the recipe comes from, and the published metrics of the same experiment, if
            # there are any. Neither changes the training.
            "recipe": config_dict.placeholder(str),
            "published": {},
        }
    )


def block_options(block: str) -> dict[str, Any]:
    """Returns the options of a block with their defaults, for ``config.model``.

    Args:
      block: "nonlocal", "disentangled_nonlocal", "global_context", or "none", which has no options.
    """
    if block == "none":
        return {}
    if block == "global_context":
        return {"block_ratio": 0.25, "block_pooling": "attention", "block_fusion": ("add",)}
    options = {
        "block_mode": "embedded_gaussian",
        "block_reduction": 2,
        "block_use_scale": True,
        # False, "after" (or True) or "before". The type lets the command line set either of them.
        # Each config needs its own reference.
        "block_sub_sample": FieldReference(False, field_type=object),
        "block_implementation": "auto",
    }
    if block == "disentangled_nonlocal":
        options["block_temperature"] = 0.05
    return options


def nearest_names(name: str, names: Sequence[str]) -> list[str]:
    """Returns up to three names that contain ``name``, or else the most similar one, if any."""
    if name in names:
        return [name]
    near = [known for known in names if name in known]
    return near[:3] or difflib.get_close_matches(name, names, n=1, cutoff=0.4)


def unknown_name(name: str, names: Sequence[str]) -> InputError:
    """Returns the error of a ``get_config`` without an experiment of this name."""
    near = nearest_names(name, names)
    hint = f"use one of {', '.join(near)}" if near else "NAMES of the module lists all"
    if len(near) == 1:
        hint = f"did you mean {near[0]!r}?"
    return InputError(f"unknown experiment {name!r}; {hint}")
