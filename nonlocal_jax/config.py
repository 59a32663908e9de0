"""Checks and compares the configs of experiments.

``check`` takes a table that maps the name of each field to the values that are allowed::

    check(config, {"data.scale_range": sequence(number(above=0), 2, ascending=True)})
"""

import dataclasses
import difflib
import numbers
import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from nonlocal_jax.errors import InputError

_COMPARISONS = {
    "at least": operator.ge,
    "more than": operator.gt,
    "at most": operator.le,
    "less than": operator.lt,
}
_LOWER = ("at least", "more than")
# Numbers are float32 on devices, and steps int32.
_MAX_NUMBER = 3.4028234663852886e38
_MAX_STEP = 2**31 - 1
_COUNTS = {2: "two", 3: "three"}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """The values that are allowed for a config field.

    Attributes:
      one: Describes one value, for example "a positive number". Error messages say "use" before it.
      many: Describes several values, for example "positive numbers".
      accepts: Returns whether a value is allowed.
    """

    one: str
    many: str
    accepts: Callable[[Any], bool]


def boolean() -> Leaf:
    """True or False."""
    return Leaf("True or False", "booleans", lambda value: isinstance(value, bool))


def integer(low: int | None = None, high: int | None = None) -> Leaf:
    """An integer from ``low`` to ``high``, both inclusive."""
    noun = "positive integer" if low == 1 else "integer"
    return _numeric(noun, numbers.Integral, {"at least": low, "at most": high})


def number(
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Leaf:
    """A number, finite in float32, from ``low`` to ``high``, both inclusive.

    ``above`` and ``below`` are exclusive bounds.
    """
    noun = "positive number" if above == 0 else "number"
    bounds = {"at least": low, "more than": above, "at most": high, "less than": below}
    return _numeric(noun, numbers.Real, bounds)


def _numeric(noun: str, kind: type, bounds: Mapping[str, float | None]) -> Leaf:
    bounds = {words: bound for words, bound in bounds.items() if bound is not None}

    def accepts(value: Any) -> bool:
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        in_range = (_COMPARISONS[words](value, bound) for words, bound in bounds.items())
        fits = kind is numbers.Integral or abs(value) <= _MAX_NUMBER
        return fits and all(in_range)

    implied = _LOWER if noun.startswith("positive") else ()
    named = [f"{words} {bound}" for words, bound in bounds.items() if words not in implied]
    limits = " of " + " and ".join(named) if named else ""
    article = "an" if noun == "integer" else "a"
    return Leaf(f"{article} {noun}{limits}", f"{noun}s{limits}", accepts)


def text() -> Leaf:
    """A non-empty string."""
    return Leaf("a non-empty string", "non-empty strings", lambda v: isinstance(v, str) and v != "")


def choice(*values: str | int) -> Leaf:
    """One of several strings or integers."""
    one = f"{', '.join(map(repr, values[:-1]))} or {values[-1]!r}"
    kind = type(values[0])

    def accepts(value: Any) -> bool:
        return isinstance(value, kind) and not isinstance(value, bool) and value in values

    return Leaf(one, f"values of {one}", accepts)


def regex() -> Leaf:
    """A regular expression."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, str):
            return False
        try:
            re.compile(value)
        except re.error:
            return False
        return True

    return Leaf("a regular expression", "regular expressions", accepts)


def sequence(
    of: Leaf, length: int | None = None, *, ascending: bool = False, empty: bool = True
) -> Leaf:
    """A tuple or list whose elements all satisfy ``of``.

    It has ``length`` elements. If ``length`` is None, it has any number; ``empty=False`` excludes
    zero. ``ascending=True`` requires the elements to be in increasing order; neighbors may be
    equal.
    """

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, (tuple, list))
            and (len(value) == length if length else empty or len(value) > 0)
            and all(of.accepts(element) for element in value)
            and (not ascending or list(value) == sorted(value))
        )

    if length:
        one = f"{_COUNTS.get(length, length)} {of.many}"
    else:
        one = f"a {'' if empty else 'non-empty '}tuple of {of.many}"
    if ascending:
        one += " in increasing order"
    return Leaf(one, f"tuples of {of.many}", accepts)


def pair(first: Leaf, second: Leaf) -> Leaf:
    """A tuple or list of two elements, which satisfy ``first`` and ``second``."""

    def accepts(value: Any) -> bool:
        is_pair = isinstance(value, (tuple, list)) and len(value) == 2
        return is_pair and first.accepts(value[0]) and second.accepts(value[1])

    words = f"({first.one}, {second.one})"
    return Leaf(f"a pair {words}", f"pairs {words}", accepts)


def optional(leaf: Leaf) -> Leaf:
    """None, or a value that satisfies ``leaf``."""
    return Leaf(
        f"None or {leaf.one}",
        f"values that are None or {leaf.one}",
        lambda value: value is None or leaf.accepts(value),
    )


def partition() -> Leaf:
    """A mesh axis or None for each axis of an array. A mesh axis splits at most one of them."""
    axes = sequence(optional(choice("data", "fsdp", "context")))

    def accepts(value: Any) -> bool:
        return axes.accepts(value) and all(a is None or value.count(a) == 1 for a in value)

    rule = ", with each name at most once"
    return Leaf(axes.one + rule, axes.many + rule, accepts)


def mapping() -> Leaf:
    """A mapping. Its fields are not checked."""
    return Leaf("a mapping", "mappings", lambda value: isinstance(value, (Mapping, ConfigDict)))


LEAVES: Mapping[str, Leaf] = {
    "name": text(),
    "task": text(),
    "seed": integer(0, 2**32 - 1),
    "steps": integer(1, _MAX_STEP),
    "data.batch_size": integer(1),
    "data.workers": integer(0),
    "data.cache": optional(text()),
    "model": mapping(),
    "optimizer.learning_rate": number(above=0),
    "optimizer.momentum": number(0, below=1),
    "optimizer.nesterov": boolean(),
    "optimizer.weight_decay": number(0),
    "optimizer.clip_global_norm": optional(number(above=0)),
    "optimizer.no_decay": sequence(regex()),
    "optimizer.lr_factors": sequence(pair(regex(), number(above=0))),
    "optimizer.frozen": sequence(regex()),
    "schedule.kind": choice("poly", "step", "cosine"),
    "schedule.power": number(above=0),
    "schedule.end": number(0),
    "schedule.boundaries": sequence(integer(1, _MAX_STEP)),
    "schedule.factor": number(above=0),
    "schedule.warmup_steps": integer(0, _MAX_STEP),
    "schedule.warmup_factor": number(0, 1),
    "mesh.context": integer(1),
    "mesh.fsdp": integer(1),
    "mesh.rules": sequence(pair(regex(), partition())),
    "train.log_every": integer(1),
    "train.checkpoint_every": integer(1),
    "train.evaluate_every": integer(1),
    "train.remat": choice("none", "blocks", "full"),
    "train.accumulate": integer(1),
    "train.ema": optional(number(0, below=1)),
    "recipe": optional(text()),
    "published": mapping(),
}
"""The config fields of every task. ``create_model`` checks the fields of ``model``."""

# Configs of other projects and of older runs may lack these fields.
_OPTIONAL = (
    *("data.workers", "data.cache", "mesh.fsdp", "mesh.rules"),
    *("train.remat", "train.accumulate", "train.ema", "recipe"),
)


def check(config: Mapping[str, Any], leaves: Mapping[str, Leaf]) -> None:
    """Checks the name, type, length and range of every field of a config.

    Args:
      config: The config of an experiment, a ``ConfigDict`` or nested mappings.
      leaves: The fields that the task adds to ``LEAVES``.

    Raises:
      InputError: A field is unknown or missing, or has a value that is not allowed. The message
        lists all problems. The fields of ``_OPTIONAL`` may be missing.
    """
    leaves = {**LEAVES, **leaves}
    values = dict(_flatten(config, leaves))
    problems = []
    for name, value in values.items():
        if name not in leaves:
            near = difflib.get_close_matches(name, leaves, n=1)
            hint = f"did you mean {near[0]}?" if near else "remove it"
            problems.append(f"unknown field {name}; {hint}")
        elif not leaves[name].accepts(value):
            problems.append(f"{name} is {value!r}; use {leaves[name].one}")
    problems += [
        f"{name} is missing; use {leaf.one}"
        for name, leaf in leaves.items()
        if name not in values and name not in _OPTIONAL
    ]
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError("\n  ".join([f"the config has {len(problems)} problems:", *problems]))


def differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], ignored: Collection[str] = ()
) -> list[str]:
    """Lists the fields in which two configs differ.

    Lists and tuples with the same items are equal, so a config equals its copy read from JSON.

    Args:
      theirs: A config, flat or nested, that was saved with a checkpoint.
      ours: The config to compare it with.
      ignored: Full names of fields and sections that may differ, such as "train" or "data.flip".

    Returns:
      One line for each field, sorted by name, such as
      ``"data.batch_size is 8 in the checkpoint, 16 in the config"``.
    """
    theirs, ours = (
        {name: _tuples(value) for name, value in _flatten(config, ignored) if name not in ignored}
        for config in (theirs, ours)
    )
    return [
        f"{name} is {_show(theirs, name)} in the checkpoint, {_show(ours, name)} in the config"
        for name in sorted(theirs.keys() | ours.keys())
        if name not in theirs or name not in ours or theirs[name] != ours[name]
    ]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _show(leaves: Mapping[str, Any], name: str) -> str:
    return repr(leaves[name]) if name in leaves else "missing"


def _flatten(
    config: Mapping[str, Any], leaves: Collection[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yields names and values. Mappings whose names are in ``leaves`` are not flattened."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, (Mapping, ConfigDict)) and name not in leaves:
            yield from _flatten(value, leaves, f"{name}.")
        else:
            yield name, value
