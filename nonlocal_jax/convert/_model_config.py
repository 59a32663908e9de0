"""The model config that a checkpoint carries."""

from collections.abc import Mapping
from typing import Any

from nonlocal_jax.errors import InputError

# A checkpoint may come from anyone, and the options that differ are printed.
_MAX_LENGTH = 200
_MAX_DEPTH = 3


def check(name: object, config: Any) -> dict[str, Any]:
    """Returns the options of a model, which have plain values.

    They need not be options of this version of nonlocal_jax.

    Args:
      name: The checkpoint, in the message.
      config: The value of its model config, which may be anything.

    Raises:
      InputError: The value is not a flat mapping from names to plain values, or the network or the
        block is not a string.
    """
    problem = _problem(config)
    if problem is not None:
        raise InputError(
            f"the model config in {name} is invalid: {problem}; use a checkpoint that nonlocal_jax "
            "wrote, and do not edit its metadata"
        )
    return dict(config)


def _problem(config: Any) -> str | None:
    if not isinstance(config, Mapping):
        return f"it is a {type(config).__name__}, not a mapping"
    if len(config) > _MAX_LENGTH:
        return f"it has {len(config):,} options"
    for key, value in config.items():
        if not (_is_plain(key) and isinstance(key, str) and key.isprintable()):
            return "the name of an option is not a short string"
        if not _is_plain(value):
            return f"{key} is not a number, a short string, None, or a short list of them"
    for key in ("network", "block"):
        if not isinstance(config.get(key, ""), str):
            return f"{key} is a {type(config[key]).__name__}, not a string"
    return None


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, (list, tuple)):
        return (
            depth < _MAX_DEPTH
            and len(value) <= _MAX_LENGTH
            and all(_is_plain(item, depth + 1) for item in value)
        )
    if isinstance(value, str):
        return len(value) <= _MAX_LENGTH
    return value is None or isinstance(value, (bool, int, float))
