"""Checkpoints in and out: whole files to the variables of a model and back."""

import json
import pathlib
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

import nonlocal_jax
from nonlocal_jax._files import PathLike, replacing
from nonlocal_jax.convert import _fit as fit
from nonlocal_jax.convert import _torch_file as torch_file
from nonlocal_jax.convert import _unpickle as unpickle
from nonlocal_jax.convert import names
from nonlocal_jax.errors import InputError
from nonlocal_jax.models import create_model, example_input

Arrays = dict[str, np.ndarray]

_CONFIG_KEY = "model_config"
_COLLECTIONS = ("params", "batch_stats")


def load(
    path: PathLike, model_config: Mapping[str, Any], *, reinit_head: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Variables of a model from a checkpoint.

    Reads what PyTorch saved (``.pth``), ``.safetensors`` with PyTorch's names, and ``.safetensors``
    that ``save`` wrote. A file of PyTorch holds a state dict, or one under "state_dict"
    (mmsegmentation 0.x and 1.x) or "model"; what stands beside it is not used. Names may begin with
    "module."; ``num_batches_tracked`` may lack.

    Where a run averaged its weights (EMA), the plain names hold the average. The second copy,
    mmengine's "ema_state_dict" or the entries "ema_..." of mmcv 1.x, is the state that training
    resumes from; it is left out.

    A file without heads (an ImageNet classifier such as torchvision's or resnet50_v1c, a detector)
    fills the backbone alone. The rest is initialized, and so are blocks inserted in the backbone if
    the file has none; a logged warning lists it.

    Args:
      path: the file.
      model_config: as for ``create_model``.
      reinit_head: initialize the classifiers, ``conv_seg`` of both heads, whatever the file has.
      seed: of what is initialized, as by ``model.init(jax.random.key(seed), ...)``.

    Returns:
      ``{"params": ..., "batch_stats": ...}``, nested dicts of float32 numpy arrays.

    Raises:
      InputError: the file is damaged, is no checkpoint, holds anything but tensors, or does not
        fit, with all names that are missing, left over or of another shape; or ``save`` wrote it
        for a config of the same shapes and another function.
    """
    if pathlib.Path(path).suffix == ".safetensors":
        arrays, file_config = _read_safetensors(path)
        if any(name.startswith("params/") for name in arrays):
            return _from_flax(path, arrays, file_config, model_config, reinit_head, seed)
    else:
        arrays = _state_dict(path, unpickle.read(path))
    return _from_torch(path, arrays, model_config, reinit_head, seed)


def from_torch(
    state_dict: Mapping[str, np.ndarray],
    model_config: Mapping[str, Any],
    *,
    reinit_head: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """The same as ``load``, of a state dict of numpy arrays."""
    return _from_torch("the state dict", dict(state_dict), model_config, reinit_head, seed)


def to_torch(variables: Mapping[str, Any], model_config: Mapping[str, Any]) -> Arrays:
    """The variables by PyTorch's names and in its layout, without ``num_batches_tracked``.

    A collection may be left out: ``{"params": gradients}`` gives the gradients' names.

    Raises:
      InputError: the variables do not fit the model.
    """
    leaves = [
        leaf for leaf in names.leaves(model_config) if leaf.path.partition("/")[0] in variables
    ]
    arrays = _flatten(variables, leaves)
    return {leaf.name: leaf.to_torch(arrays[leaf.path]) for leaf in leaves}


def save(path: PathLike, variables: Mapping[str, Any], model_config: Mapping[str, Any]) -> None:
    """Writes a safetensors file that ``load`` reads, in float32.

    Names are Flax's, joined by "/", collection first ("params/backbone/layer1_0/conv1/kernel");
    the file's metadata holds the model config as JSON under "model_config".

    Raises:
      InputError: the variables do not fit the model, or the file cannot be written.
    """
    arrays = _flatten(variables, names.leaves(model_config))
    tensors = {name: np.asarray(array, np.float32, order="C") for name, array in arrays.items()}
    metadata = {_CONFIG_KEY: fit.to_json(model_config)}
    with replacing(path) as partial:
        try:
            safetensors.numpy.save_file(tensors, partial, metadata)
        except safetensors.SafetensorError as error:
            raise InputError(f"cannot write {path}: {error}") from error


def export_torch(
    path: PathLike, variables: Mapping[str, Any], model_config: Mapping[str, Any]
) -> None:
    """Writes ``{"meta": ..., "state_dict": ...}`` as PyTorch does, in float32.

    ``torch.load`` reads it, and ``load_state_dict(strict=True)`` of the same network of
    mmsegmentation takes it.

    Raises:
      InputError: the variables do not fit the model, or the file cannot be written.
    """
    whole = {collection: variables.get(collection, {}) for collection in _COLLECTIONS}
    state_dict = OrderedDict()
    for name, array in to_torch(whole, model_config).items():
        state_dict[name] = np.asarray(array, np.float32)
        if name.endswith(".running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            state_dict[counter] = np.zeros((), np.int64)
    meta = {
        "creator": f"nonlocal_jax {nonlocal_jax.__version__}",
        _CONFIG_KEY: fit.to_json(model_config),
    }
    with replacing(path) as partial:
        torch_file.write(partial, {"meta": meta, "state_dict": state_dict})


def read_model_config(path: PathLike) -> dict[str, Any]:
    """The model config in a safetensors file that ``save`` wrote.

    Raises:
      InputError: the file cannot be read or has none.
    """
    _, config = _read_safetensors(path, with_arrays=False)
    if config is None:
        raise InputError(f"{path} holds no model config: nonlocal_jax did not write it")
    return config


def _read_safetensors(
    path: PathLike, *, with_arrays: bool = True
) -> tuple[Arrays, dict[str, Any] | None]:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            config = dict(json.loads(metadata[_CONFIG_KEY])) if _CONFIG_KEY in metadata else None
            keys = file.keys() if with_arrays else ()
            return {key: file.get_tensor(key) for key in keys}, config
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    except Exception as error:  # as in unpickle.read
        raise InputError(f"{path} is damaged or no safetensors file: {error}") from error


def _state_dict(path: PathLike, content: Any) -> Arrays:
    """The state dict in what a file of PyTorch held: tensors only."""
    if isinstance(content, dict):
        nested = (content.get(key) for key in ("state_dict", "model"))
        content = next((value for value in nested if isinstance(value, dict)), content)
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds {_describe(content)} instead of a state dict; "
            "in PyTorch, save model.state_dict()"
        )
    refused = [
        f"{key!r}: {_describe(value)}"
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, np.ndarray))
    ]
    if refused:
        raise InputError(f"the state dict in {path} holds more than tensors:{fit.listing(refused)}")
    return content


def _describe(value: Any) -> str:
    if isinstance(value, unpickle.Placeholder):
        return f"an object of {value.name}, which is not imported"
    return f"an object of type {type(value).__name__}"


def _from_flax(
    source: PathLike,
    arrays: Arrays,
    file_config: dict[str, Any] | None,
    model_config: Mapping[str, Any],
    reinit_head: bool,
    seed: int,
) -> dict[str, Any]:
    leaves = names.leaves(model_config)
    fresh = _classifiers(leaves) if reinit_head else []
    for leaf in fresh:
        arrays.pop(leaf.path, None)
    wanted = {leaf.path: leaf.shape for leaf in leaves if leaf not in fresh}
    ignored = ["num_classes"] if reinit_head else []
    fit.check_model(source, arrays, wanted, file_config, model_config, ignored)
    values = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    return _complete(source, values, fresh, model_config, seed)


def _from_torch(
    source: object,
    arrays: Mapping[str, np.ndarray],
    model_config: Mapping[str, Any],
    reinit_head: bool,
    seed: int,
) -> dict[str, Any]:
    leaves = names.leaves(model_config)
    arrays = _plain_names(arrays)
    fresh = _classifiers(leaves) if reinit_head else []
    if not any(re.match(r"(decode|auxiliary)_head\.", name) for name in arrays):
        arrays = _backbone(arrays)
        blocks = any("_block." in name for name in arrays)
        fresh = [
            leaf
            for leaf in leaves
            if not leaf.name.startswith("backbone.") or ("_block." in leaf.name and not blocks)
        ]
    for leaf in fresh:
        arrays.pop(leaf.name, None)
    used = {leaf.name: leaf for leaf in leaves if leaf not in fresh}
    wanted = {name: leaf.torch_shape for name, leaf in used.items()}
    hints = fit.torch_hints({name: array.shape for name, array in arrays.items()}, wanted)
    fit.check(source, arrays, wanted, hints)
    # Copies: the arrays may view a file.
    values = {
        leaf.path: np.array(leaf.to_flax(arrays[name]), np.float32, order="C")
        for name, leaf in used.items()
    }
    return _complete(source, values, fresh, model_config, seed)


def _plain_names(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Names without the prefix of a parallel wrapper; no counters, no second copy of an average."""
    plain = {re.sub(r"^module\.", "", name): array for name, array in arrays.items()}
    return {
        name: array
        for name, array in plain.items()
        if not name.endswith("num_batches_tracked") and not name.startswith("ema_")
    }


def _backbone(arrays: Arrays) -> Arrays:
    """What belongs to a backbone, named as inside a segmentation network."""
    if not any(name.startswith("backbone.") for name in arrays):
        arrays = {
            f"backbone.{name}": array
            for name, array in arrays.items()
            if re.match(r"(stem|conv1|bn1|layer\d+)\.", name)
        }
    return {name: array for name, array in arrays.items() if name.startswith("backbone.")}


def _classifiers(leaves: Collection[names.Leaf]) -> list[names.Leaf]:
    return [leaf for leaf in leaves if "/conv_seg/" in leaf.path]


def _complete(
    source: object,
    values: Arrays,
    fresh: Collection[names.Leaf],
    model_config: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """The variables: values by path, and those of ``fresh`` as initialized."""
    if fresh:
        trees = fit.listing(_trees(fresh, values))
        logging.warning("initialized instead of read from %s:%s", source, trees)
        values = values | _initialize(fresh, model_config, seed)
    return unflatten_dict(values, sep="/")


def _trees(fresh: Collection[names.Leaf], kept: Collection[str]) -> Collection[str]:
    """The largest modules that hold leaves of ``fresh`` and none of the paths ``kept``."""
    others = [path.partition("/")[2] for path in kept]
    trees = {}  # a set in order
    for leaf in fresh:
        module = ""
        for part in leaf.path.split("/")[1:]:
            module += part
            if not any(path.startswith(f"{module}/") for path in others):
                break
            module += "/"
        trees[module] = None
    return trees


def _initialize(
    leaves: Collection[names.Leaf], model_config: Mapping[str, Any], seed: int
) -> Arrays:
    model, example = create_model(model_config), example_input(model_config)

    @jax.jit  # computes no more than what is returned
    def init(key):
        variables = model.init(key, jnp.zeros(example.shape, example.dtype))
        flat = flatten_dict(variables, sep="/")
        return {leaf.path: flat[leaf.path] for leaf in leaves}

    return {path: np.array(x, np.float32) for path, x in init(jax.random.key(seed)).items()}


def _flatten(variables: Mapping[str, Any], leaves: Collection[names.Leaf]) -> Arrays:
    """Variables by path; exactly those of ``leaves``."""
    collections = {name: variables[name] for name in _COLLECTIONS if name in variables}
    arrays = {k: np.asarray(v) for k, v in flatten_dict(collections, sep="/").items()}
    fit.check("the tree of variables", arrays, {leaf.path: leaf.shape for leaf in leaves})
    return arrays
