"""Whether named arrays fit a model, and if not, everything that is wrong with them at once."""

import inspect
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from nonlocal_jax.convert.names import HEAD_BLOCKS
from nonlocal_jax.errors import InputError
from nonlocal_jax.models import NETWORKS, model_options

Shapes = Mapping[str, tuple[int, ...]]

# Options that change no output at inference.
_NEUTRAL = ("dropout", "dtype", "block_implementation")

_SHOWN = 6


def listing(items: Collection[str]) -> str:
    """One item a line, the first few of them."""
    lines = list(items)
    if len(lines) > _SHOWN:
        lines[_SHOWN - 1 :] = [f"and {len(lines) - _SHOWN + 1} more"]
    return "".join(f"\n  {line}" for line in lines)


def check(
    source: object, arrays: Mapping[str, np.ndarray], wanted: Shapes, hints: Collection[str] = ()
) -> None:
    """Requires exactly the ``wanted`` names, with these shapes and of a floating type.

    Args:
      source: what to call the arrays in the message.
      arrays: what there is.
      wanted: what there should be.
      hints: what to say first in the message.

    Raises:
      InputError: listing all that is missing, not wanted or of another shape.
    """
    problems = {
        "missing": [f"{name} {shape}" for name, shape in wanted.items() if name not in arrays],
        "not in the model": [f"{n} {a.shape}" for n, a in arrays.items() if n not in wanted],
        "of another shape": [
            f"{name} is {arrays[name].shape}, {shape} in the model"
            for name, shape in wanted.items()
            if name in arrays and arrays[name].shape != shape
        ],
        "not of a floating type": [
            f"{name} is {arrays[name].dtype}"
            for name in wanted
            if name in arrays and not jnp.issubdtype(arrays[name].dtype, jnp.floating)
        ],
    }
    if any(problems.values()):
        lines = [f"{source} does not fit the model config", *hints]
        lines += [f"{len(p)} {what}:{listing(p)}" for what, p in problems.items() if p]
        raise InputError("\n".join(lines))


def torch_hints(found: Shapes, wanted: Shapes) -> list[str]:
    """In which options of a config PyTorch's names and shapes differ."""
    theirs, ours = _traits(found), _traits(wanted)
    return _differences(theirs, ours, theirs.keys() & ours.keys())


def _differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], options: Collection[str]
) -> list[str]:
    differing = [option for option in sorted(options) if theirs[option] != ours[option]]
    lines = [f"{o} is {theirs[o]!r} in the file, {ours[o]!r} in the config" for o in differing]
    if "num_classes" in differing:
        lines.append("reinit_head=True (--reinit-head) keeps everything but the classifiers")
    return lines


def _traits(shapes: Shapes) -> dict[str, Any]:
    """The options of a segmentation network that show in its names and shapes."""
    names = "\n".join(shapes)
    traits = {}
    if sizes := _stage_sizes(names):
        traits["stage_sizes"] = sizes
        traits["stem"] = "v1c" if "backbone.stem." in names else "v1"
        plugins = re.findall(r"^backbone\.(layer\d+\.\d+)\.\w+_block\.", names, re.MULTILINE)
        traits["block_at"] = tuple(sorted(set(plugins)))
    if "decode_head." in names:
        blocks = [ours for name, ours in HEAD_BLOCKS.items() if f"decode_head.{name}." in names]
        traits["block of the head"] = blocks[0] if blocks else "none"
    for option, name in (
        ("num_classes", "decode_head.conv_seg.weight"),
        ("head_channels", "decode_head.convs.0.conv.weight"),
        ("auxiliary_channels", "auxiliary_head.convs.0.conv.weight"),
    ):
        if name in shapes:
            traits[option] = shapes[name][0]
    return traits


def _stage_sizes(names: str) -> tuple[int, ...]:
    places = re.findall(r"^backbone\.layer(\d+)\.(\d+)\.", names, re.MULTILINE)
    sizes: dict[int, int] = {}
    for stage, index in places:
        sizes[int(stage)] = max(sizes.get(int(stage), 0), int(index) + 1)
    return tuple(sizes[stage] for stage in sorted(sizes))


def to_json(config: Mapping[str, Any]) -> str:
    """A model config as text."""
    return json.dumps(dict(config), sort_keys=True)


def config_differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], ignored: Collection[str] = ()
) -> list[str]:
    """Options in which two model configs describe different functions, defaults filled in."""
    theirs, ours = _complete(theirs), _complete(ours)
    # What one of them lacks is an option of another block, and the blocks are named.
    return _differences(theirs, ours, theirs.keys() & ours.keys() - {*_NEUTRAL, *ignored})


def check_model(
    source: object,
    arrays: Mapping[str, np.ndarray],
    wanted: Mapping[str, tuple[int, ...]],
    theirs: Mapping[str, Any] | None,
    ours: Mapping[str, Any],
    ignored: Collection[str] = (),
) -> None:
    """``check``, and that the arrays are of the model config ``ours``, where ``theirs`` is known.

    Raises:
      InputError: listing what does not fit.
    """
    hints = [] if theirs is None else config_differences(theirs, ours, ignored)
    check(source, arrays, wanted, hints)
    if hints:
        raise InputError(f"{source} is of another model:{listing(hints)}")


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    options = json.loads(to_json(config))
    if options.setdefault("network", "segmentation") not in NETWORKS:  # of a newer version
        return options
    defaults = {name: option.default for name, option in model_options(options).items()}
    known = {k: v for k, v in defaults.items() if v is not inspect.Parameter.empty}
    return json.loads(json.dumps(known)) | options
