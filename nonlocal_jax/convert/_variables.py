"""Turns the named arrays of a checkpoint into the variables of a model."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from nonlocal_jax.convert import _fit as fit
from nonlocal_jax.convert import names
from nonlocal_jax.errors import InputError, listing
from nonlocal_jax.models import create_model, example_input

Arrays = dict[str, np.ndarray]


def from_flax(
    name: object,
    arrays: Arrays,
    their_config: Mapping[str, Any] | None,
    model_config: Mapping[str, Any],
    *,
    reinit_head: bool,
    new_blocks: bool,
    allow_non_finite: bool,
    seed: int,
    dtype: Any,
) -> dict[str, Any]:
    """Returns the variables from arrays by path in Flax. ``dtype`` None keeps their types.

    Raises:
      InputError: The arrays do not fit the model, see ``load``.
    """
    wanted, fresh = names.shapes(model_config), []
    if new_blocks:
        paths = names.known_shapes(model_config)
        _check_blocks(paths)
        fresh += filter(fit.is_in_block, paths)
        arrays = {path: array for path, array in arrays.items() if not fit.is_in_block(path)}
    if reinit_head:
        classifier = names.sources(model_config)[0].classifier
        leaves = names.leaves(model_config)
        fresh += [leaf.path for leaf in leaves if re.match(classifier, leaf.name)]
    if fresh:
        arrays, wanted = _without(arrays, fresh), _without(wanted, fresh)
    different = []
    if their_config is not None:
        asked = {"reinit_head": reinit_head, "new_blocks": new_blocks}
        different = fit.config_differences(their_config, model_config, **asked)
    fit.check(name, arrays, wanted, different)
    values = arrays
    if dtype is not None:
        with np.errstate(over="ignore"):  # copies: the arrays may view a file
            values = {path: np.array(array, dtype) for path, array in arrays.items()}
    if not allow_non_finite:
        fit.check_finite(name, values)
    return _fill(name, values, fresh, model_config, seed)


def from_torch(
    name: object,
    arrays: Mapping[str, np.ndarray],
    model_config: Mapping[str, Any],
    *,
    reinit_head: bool,
    new_blocks: bool,
    seed: int,
    allow_missing_heads: bool = True,
    allow_non_finite: bool = False,
    dtype: Any = np.float32,
) -> dict[str, Any]:
    """Returns the variables from arrays with the names of PyTorch or Caffe2.

    Raises:
      InputError: The arrays do not fit the model, see ``load``.
    """
    source, arrays = names.identify(name, arrays, model_config)
    skipped = [source.classifier] if reinit_head else []
    asked = {"reinit_head": reinit_head, "new_blocks": new_blocks}
    if new_blocks:
        _check_blocks(names.known_shapes(model_config))
    if not any(re.match(source.head, found) for found in arrays):
        if not allow_missing_heads:
            raise InputError(
                f"{name} has no heads, only a backbone; train with --init={name} first, and use "
                "the work directory of that training"
            )
        skipped = [rf"(?!{source.backbone})"]
        new_blocks = new_blocks or not any(re.match(source.block, found) for found in arrays)
    table_config = dict(model_config)
    if new_blocks:
        skipped.append(source.block)
        # The blocks of the file, as the names of other arrays can depend on them.
        found = source.options({n: array.shape for n, array in arrays.items()})
        table_config |= {k: v for k, v in found.items() if k in ("block", "block_at")}
    arrays = {n: x for n, x in arrays.items() if not any(re.match(s, n) for s in skipped)}
    leaves = names.leaves_of(source, model_config, table_config)
    fresh = [
        leaf.path
        for leaf in leaves
        if any(re.match(s, leaf.name) for s in skipped)
        or (new_blocks and fit.is_in_block(leaf.path))
    ]
    used = {leaf.name: leaf for leaf in leaves if leaf.path not in fresh}
    wanted = {n: leaf.torch_shape for n, leaf in used.items()}
    arrays = source.adapt(arrays, wanted)
    arrays = {n: used[n].inflate(array) if n in used else array for n, array in arrays.items()}
    different = fit.option_differences(source, arrays, wanted, model_config)
    if any(re.match(source.block, found) for found in arrays):
        different += fit.lacking_in_blocks(source, model_config)
    fit.check(name, arrays, wanted, different)
    if source.head == source.classifier:
        _check_asked(name, fresh, asked)
    values = copies(name, arrays, used, allow_non_finite, dtype)
    return _fill(name, values, fresh, model_config, seed)


def copies(
    name: object,
    arrays: Mapping[str, np.ndarray],
    used: Mapping[str, names.Leaf],
    allow_non_finite: bool,
    dtype: Any = np.float32,
) -> Arrays:
    """Returns copies of the arrays by path in Flax, as the arrays may view a file.

    Raises:
      InputError: Some values are not finite.
    """
    with np.errstate(over="ignore"):
        found = {n: np.array(leaf.to_flax(arrays[n]), dtype, order="C") for n, leaf in used.items()}
    if not allow_non_finite:
        fit.check_finite(name, found)
    return {leaf.path: found[n] for n, leaf in used.items()}


def _check_asked(name: object, fresh: Iterable[str], asked: Mapping[str, bool]) -> None:
    """Requires the flags for what a file of a backbone does not contain.

    Raises:
      InputError: A flag is not set.
    """
    in_block = {fit.is_in_block(path) for path in fresh}
    lacking = [
        (part, option)
        for part, option, needed in (
            ("classifier", "reinit_head", False in in_block),
            ("blocks", "new_blocks", True in in_block),
        )
        if needed and not asked[option]
    ]
    if lacking:
        options = ", ".join(f"{option}=True" for _, option in lacking)
        flags = " ".join(f"--{option.replace('_', '-')}" for _, option in lacking)
        raise InputError(
            f"{name} has no {' and no '.join(part for part, _ in lacking)} for the model; to "
            f"initialize what it lacks, set {options} ({flags} of experiments.train and "
            "experiments.convert)"
        )


def _check_blocks(paths: Iterable[str]) -> None:
    """Requires that a model has blocks, because they are to be initialized.

    Raises:
      InputError: It has none.
    """
    if not any(map(fit.is_in_block, paths)):
        raise InputError(
            "new_blocks is set, but the model has no blocks; leave out --new-blocks (new_blocks), "
            "or use a model config with blocks"
        )


def _without(by_name: Mapping[str, Any], removed: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in by_name.items() if name not in removed}


def _fill(
    name: object,
    values: Arrays,
    fresh: Collection[str],
    model_config: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Returns the tree of the values, in which the paths ``fresh`` are initialized."""
    if fresh:
        modules = _modules(fresh, values)
        logging.warning(
            "initialized instead of read from %s:%s", name, listing(modules, len(modules))
        )
        values = values | _initialize(fresh, model_config, seed)
    return unflatten_dict(values, sep="/")


def _modules(fresh: Collection[str], kept: Collection[str]) -> Collection[str]:
    """Returns the largest modules with paths of ``fresh`` and without paths of ``kept``."""
    others = [path.partition("/")[2] for path in kept]
    modules = {}  # an ordered set
    for path in fresh:
        module = ""
        for part in path.split("/")[1:]:
            module += part
            if not any(other.startswith(f"{module}/") for other in others):
                break
            module += "/"
        modules[module] = None
    return modules


def _initialize(paths: Collection[str], model_config: Mapping[str, Any], seed: int) -> Arrays:
    model, example = create_model(model_config), example_input(model_config)

    @jax.jit  # computes only what is returned
    def init(key):
        variables = model.init(key, jnp.zeros(example.shape, example.dtype))
        flat = flatten_dict(variables, sep="/")
        return {path: flat[path] for path in paths}

    return {path: np.array(x, np.float32) for path, x in init(jax.random.key(seed)).items()}
