"""The classes that a checkpoint carries: a dataset's name, its class names and their colors."""

from collections.abc import Mapping
from typing import Any

from nonlocal_jax.errors import InputError

# A checkpoint may come from anyone, and its names are printed and drawn.
_MAX_LENGTH = 200
_TEXT = f"a string of 1 to {_MAX_LENGTH} printable characters"


def check(name: object, dataset: Any, model_config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``{"name", "classes", "palette"}`` as plain values for JSON.

    Args:
      name: What has the dataset, in the message.
      dataset: Its value, which may be anything.
      model_config: The model config. Without ``num_classes``, any number of classes is allowed.

    Raises:
      InputError: The dataset is not a mapping with a name, the names of the classes and a color for
        each, or the number of classes is not ``num_classes``.
    """
    problem = _problem(dataset)
    if problem is None and "num_classes" in model_config:
        number, wanted = len(dataset["classes"]), model_config["num_classes"]
        if number != wanted:
            problem = f"it has {number} classes, but the model predicts {wanted}"
    if problem is not None:
        raise InputError(
            f"the dataset of {name} is invalid: {problem}; use a name, the names of the classes of "
            "the model, and an RGB color from 0 to 255 for each"
        )
    return {key: dataset[key] for key in ("name", "classes", "palette")}


def _problem(dataset: Any) -> str | None:
    if not isinstance(dataset, Mapping):
        return f"it is a {type(dataset).__name__}, not a mapping"
    for key in ("name", "classes", "palette"):
        if key not in dataset:
            return f"it has no {key}"
    name, classes, palette = dataset["name"], dataset["classes"], dataset["palette"]
    if not _is_text(name):
        return f"its name is not {_TEXT}"
    if not (isinstance(classes, list) and classes and all(map(_is_text, classes))):
        return f"its classes are not a list whose entries are each {_TEXT}"
    if not (isinstance(palette, list) and len(palette) == len(classes)):
        return f"its palette is not a list of {len(classes)} colors"
    if not all(map(_is_color, palette)):
        return "its palette has a color that is not three integers from 0 to 255"
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_LENGTH and value.isprintable()


def _is_color(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(v) is int and 0 <= v <= 255 for v in value)
    )
