"""Checks of meshes and of the rules that shard arrays over them."""

import math
from collections.abc import Sequence
from typing import Any

from jax.sharding import AxisType, Mesh, PartitionSpec

from nonlocal_jax.config import Leaf, pair, regex
from nonlocal_jax.errors import InputError


def check_divides(name: str, number: int, size: int, what: str) -> None:
    """Requires that a number divides the number of devices, or of groups of them.

    Raises:
      InputError: It does not. The message lists the numbers that do.
    """
    if number < 1 or size % number:
        *others, last = (str(n) for n in range(1, size + 1) if size % n == 0)
        raise InputError(
            f"{name}={number} does not divide {size} {what}; "
            f"use {', '.join(others)}{' or ' if others else ''}{last}"
        )


def check_mesh(mesh: Any) -> None:
    """Requires a mesh on which XLA chooses the shardings of the intermediate results.

    Raises:
      InputError: ``mesh`` is not a mesh, or it has an axis that is not Auto.
    """
    if not isinstance(mesh, Mesh):
        raise InputError(
            f"the mesh of Shardings is of type {type(mesh).__name__}; use a jax.sharding.Mesh, "
            "such as nonlocal_jax.sharding.make_mesh()"
        )
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        kinds = ", ".join(
            f"{name!r} ({kind.name})"
            for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        )
        raise InputError(
            f"the mesh of Shardings has the axes {kinds}, but all axes must be Auto; use "
            "nonlocal_jax.sharding.make_mesh, or jax.make_mesh(..., "
            f"axis_types=(jax.sharding.AxisType.Auto,) * {len(mesh.axis_names)})"
        )


def check_specs(axes: Sequence[Any], rules: Any, batch_spec: Any) -> None:
    """Requires that the rules and the ``batch_spec`` of ``Shardings`` fit the axes of a mesh.

    Raises:
      InputError: They do not.
    """
    spec = _partition_spec(axes)
    pairs = pair(regex(), spec)
    for rule in rules if isinstance(rules, (tuple, list)) else [rules]:
        if not pairs.accepts(rule):
            raise InputError(f"the sharding rule {rule!r} is invalid; use a tuple of {pairs.many}")
    if not spec.accepts(batch_spec) or len(batch_spec) > 1:
        raise InputError(f"batch_spec is {batch_spec!r}; use {spec.one} and at most one entry")


def check_fits(
    name: str, shape: tuple[int, ...], pattern: str, spec: PartitionSpec, mesh: Mesh
) -> None:
    """Requires that the ``PartitionSpec`` of a rule splits an array evenly.

    Raises:
      InputError: It does not.
    """
    parts = [number_of_parts(mesh, axes) for axes in spec]
    fits = len(parts) <= len(shape)
    if not (fits and all(n % part == 0 for n, part in zip(shape, parts, strict=False))):
        raise InputError(
            f"the sharding rule {pattern!r}: {spec} does not fit {name} of shape {shape} on "
            f"the mesh {dict(mesh.shape)}; use a regular expression that does not match "
            "this path, or another PartitionSpec"
        )


def number_of_parts(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    """Returns the number of parts into which ``axes`` splits an array axis.

    ``axes`` is one entry of a ``PartitionSpec``.
    """
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


def _partition_spec(axes: Sequence[Any]) -> Leaf:
    """A ``PartitionSpec`` of these mesh axes, each of which splits at most one array axis."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, PartitionSpec):
            return False
        groups = [axis if isinstance(axis, tuple) else (axis,) for axis in value]
        names = [name for group in groups for name in group if name is not None]
        return all(name in axes and names.count(name) == 1 for name in names)

    rule = f" of the mesh axes {', '.join(map(repr, axes))}, with each axis at most once"
    return Leaf(f"a PartitionSpec{rule}", f"PartitionSpecs{rule}", accepts)
