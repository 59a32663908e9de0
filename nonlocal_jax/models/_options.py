"""Checks the options of a model against the keyword arguments of the function that builds it."""

import difflib
import types
from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import jax

from nonlocal_jax.config import number
from nonlocal_jax.errors import InputError

# A type, what else is required of the value, and the test.
Positive = Annotated[int, "of at least 1", lambda n: n >= 1]
Odd = Annotated[int, "of at least 1 that is odd", lambda n: n >= 1 and n % 2 == 1]
PositiveNumber = Annotated[float, "above 0", lambda x: x > 0]
Probability = Annotated[float, "from 0 to 1", lambda p: 0 <= p <= 1]

_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a string",
    type(None): "None",
    jax.Array: "a scalar array",
}


def check_options(given: Mapping[str, Any], known: Mapping[str, Parameter], model: str) -> None:
    """Checks that no option is unknown or missing and that each value has the annotated type.

    Raises:
      InputError: An option is unknown, missing or wrong. The message names ``model``, the option,
        and what to use instead.
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"use some of {', '.join(known)}"
            raise InputError(f"{model} has no option {name!r}; {hint}")
    required = [name for name, option in known.items() if option.default is Parameter.empty]
    if missing := [name for name in required if name not in given]:
        pronoun = "it" if len(missing) == 1 else "them"
        raise InputError(f"the model config lacks {', '.join(missing)}; add {pronoun}")
    for name, value in given.items():
        kind = known[name].annotation
        if not _fits(value, kind):
            raise InputError(f"{name} is {value!r}; use {_describe(kind)}")


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (Any, Parameter.empty):
        return True
    if origin is Annotated:
        base, _, test = arguments
        return _fits(value, base) and test(value)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in arguments)
    if origin in (Sequence, tuple, list):
        return isinstance(value, list | tuple) and all(_fits(v, arguments[0]) for v in value)
    if kind is float:
        # Devices compute in float32.
        return isinstance(value, int | float) and number().accepts(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def _describe(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{_describe(arguments[0])} {arguments[1]}"
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_describe, arguments))
    if origin in (Sequence, tuple, list):
        return f"a list, each entry {_describe(arguments[0])}"
    return _WORDS.get(kind, str(kind))
