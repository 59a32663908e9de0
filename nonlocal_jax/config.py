"""Compares configs."""

from collections.abc import Collection, Mapping
from typing import Any


def differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], ignored: Collection[str] = ()
) -> list[str]:
    """Lists the leaves in which two configs differ.

    Lists and tuples with the same items are equal, so a config equals its copy read from JSON.

    Args:
      theirs: A config, flat or nested, that was saved with a checkpoint.
      ours: The config to compare it with.
      ignored: Leaves and sections that may differ, with their full names ("train", "data.flip").

    Returns:
      One line for each leaf, sorted by name, such as
      ``"data.batch_size is 8 in the checkpoint, 16 in the config"``.
    """
    theirs, ours = _leaves(theirs, ignored), _leaves(ours, ignored)
    return [
        f"{name} is {_show(theirs, name)} in the checkpoint, {_show(ours, name)} in the config"
        for name in sorted(theirs.keys() | ours.keys())
        if name not in theirs or name not in ours or theirs[name] != ours[name]
    ]


def _leaves(config: Any, ignored: Collection[str], prefix: str = "") -> dict[str, Any]:
    """The leaves by their full names. A ConfigDict is no Mapping, but it has items."""
    leaves = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in ignored:
            continue
        if hasattr(value, "items"):
            leaves |= _leaves(value, ignored, f"{name}.")
        else:
            leaves[name] = _tuples(value)
    return leaves


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _show(leaves: Mapping[str, Any], name: str) -> str:
    return repr(leaves[name]) if name in leaves else "missing"
