"""Checks that named arrays fit a model. One error lists everything that does not fit."""

import inspect
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from nonlocal_jax.config import differences
from nonlocal_jax.convert.source import Shapes, Source
from nonlocal_jax.errors import InputError, listing
from nonlocal_jax.models import BLOCKS, NETWORKS, model_options

COLLECTIONS = ("params", "batch_stats")

# Options that change neither the parameters nor, beyond rounding, the outputs at inference.
_NEUTRAL = (
    *("dropout", "dropout_per_frame", "dtype", "head_std", "norm", "norm_group_size"),
    "block_implementation",
)

# Options of blocks.
_OF_BLOCKS = re.compile(r"block(_\w+)?|group_(frames|at)")


def is_in_block(path: str) -> bool:
    """Returns whether an array with this path in Flax belongs to a block."""
    return re.search(r"[/_]block/", path) is not None


def check(
    name: object,
    arrays: Mapping[str, np.ndarray],
    wanted: Shapes | None,
    different: Collection[str] = (),
    target: str = "model config",
) -> None:
    """Requires exactly the ``wanted`` names, with these shapes and a floating-point type.

    Args:
      name: Name of the checkpoint in the message.
      arrays: Arrays by name.
      wanted: Shapes by name, or None if they are not known.
      different: Differences of the model configs, which are errors too.
      target: What describes the model, in the message.

    Raises:
      InputError: The arrays do not fit. The message lists all arrays that are missing, are not in
        the model, or have a different shape or type, and the differences of the model configs.
    """
    if wanted is None:
        wanted = {path: array.shape for path, array in arrays.items()}
    model = target.split()[0]
    problems = {
        "missing": [f"{n} {shape}" for n, shape in wanted.items() if n not in arrays],
        f"not in the {model}": [f"{n} {a.shape}" for n, a in arrays.items() if n not in wanted],
        "with a different shape": [
            f"{n} is {arrays[n].shape}, {shape} in the {model}"
            for n, shape in wanted.items()
            if n in arrays and arrays[n].shape != shape
        ],
        "not floating-point": [
            f"{n} is {arrays[n].dtype}"
            for n in wanted
            if n in arrays and not jnp.issubdtype(arrays[n].dtype, jnp.floating)
        ],
    }
    if not different and not any(problems.values()):
        return
    lines = [f"{name} does not fit the {target}", *different]
    lines += [f"{len(p)} {what}:{listing(p)}" for what, p in problems.items() if p]
    advice = f"use the {target} that it was made with, or another checkpoint"
    commands = "of experiments.train and experiments.convert"
    if any(line.startswith("num_classes is ") for line in different):
        advice += "; to train on new classes, initialize the classifiers with reinit_head=True "
        advice += f"(--reinit-head {commands})"
    of_blocks = [line for line in different if re.match("(block|block_at|block_norm) is ", line)]
    if of_blocks and "block is" in of_blocks[0] and of_blocks[0].endswith("'none' in the config"):
        advice += "; the model has no blocks: for those of the checkpoint, use a config with blocks"
    elif of_blocks:
        advice += "; to train new blocks, initialize them with new_blocks=True "
        advice += f"(--new-blocks {commands})"
    raise InputError("\n".join([*lines, advice]))


def check_finite(name: object, arrays: Mapping[str, np.ndarray]) -> None:
    """Requires that all values of the arrays are finite.

    Raises:
      InputError: Some are not. The message lists these arrays.
    """
    counts = {n: np.count_nonzero(~np.isfinite(array)) for n, array in arrays.items()}
    found = [f"{n}: {count:,} of {arrays[n].size:,}" for n, count in counts.items() if count]
    if found:
        raise InputError(
            f"{name} has {len(found)} arrays with values that are NaN, infinite or too large for "
            f"their type:{listing(found)}\nuse another checkpoint, such as an earlier step of its "
            "training, or load it all the same with allow_non_finite=True (--allow-non-finite)"
        )


def option_differences(
    source: Source, found: Mapping[str, np.ndarray], wanted: Shapes, config: Mapping[str, Any]
) -> list[str]:
    """Lists the options of a model config in which names and shapes of a source differ."""
    theirs = source.options({name: array.shape for name, array in found.items()})
    ours = source.options(wanted)
    if any(map(is_in_block, wanted)):  # paths, as the source has no names for the block
        ours |= {"block": config["block"]}
    return differences(theirs, ours, theirs.keys() ^ ours.keys())


def lacking_in_blocks(source: Source, config: Mapping[str, Any]) -> list[str]:
    """Lists the options of a model's blocks that no block of a source has."""
    return [
        f"{option} is {value!r} in the config, which no block with these names has"
        for option, value in source.lacking(config).items()
        if _OF_BLOCKS.fullmatch(option)
    ]


def config_differences(
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    *,
    reinit_head: bool = False,
    new_blocks: bool = False,
) -> list[str]:
    """Lists the options in which two model configs describe different functions.

    Options of classifiers and blocks that are initialized may differ.
    """
    theirs, ours = _complete(theirs), _complete(ours)
    ignored = {"num_classes"} if reinit_head else set()
    if new_blocks:
        ignored |= {
            option for option in theirs.keys() | ours.keys() if _OF_BLOCKS.fullmatch(option)
        }
    # Other networks and blocks have other options.
    if any(theirs.get(option) != ours.get(option) for option in ("network", "block")):
        ignored = {*ignored, *(theirs.keys() ^ ours.keys())}
    return differences(theirs, ours, {*_NEUTRAL, *ignored})


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a model config, with defaults for those that are not given."""
    options = {"network": "segmentation", **config}
    if options["network"] not in NETWORKS or options.get("block", "none") not in ("none", *BLOCKS):
        return options  # of a newer version
    defaults = {name: option.default for name, option in model_options(options).items()}
    options = {k: v for k, v in defaults.items() if v is not inspect.Parameter.empty} | options
    if options.get("block_sub_sample") is True:
        options["block_sub_sample"] = "after"  # means the same
    if options.get("block_norm") == "frozen_batch_norm":
        options["block_norm"] = "batch_norm"  # is neutral, as norm is
    return options


def flatten(
    variables: Mapping[str, Any], wanted: Shapes | None, target: str = "model config"
) -> dict[str, np.ndarray]:
    """Returns the variables by path, after checking that they are the wanted ones.

    Raises:
      InputError: The variables do not fit, see ``check``.
    """
    collections = {name: variables[name] for name in COLLECTIONS if name in variables}
    arrays = {k: np.asarray(v) for k, v in flatten_dict(collections, sep="/").items()}
    check("the tree of variables", arrays, wanted, target=target)
    return arrays
