"""Loads the variables of a model from files and work directories, and saves them."""

import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

import nonlocal_jax
from nonlocal_jax._files import PathLike, as_path, bucket_errors, is_bucket, replacing
from nonlocal_jax.convert import _dataset, _model_config, _variables, names
from nonlocal_jax.convert import _fit as fit
from nonlocal_jax.convert import _orbax as orbax
from nonlocal_jax.convert import _safetensors as safetensors
from nonlocal_jax.convert import _torch_file as torch_file
from nonlocal_jax.convert._variables import Arrays
from nonlocal_jax.errors import InputError

# Of a file. A ResNet-101 has 800 arrays.
_MAX_ARRAYS = 20_000
_MAX_NAME = 500


def load(
    path: PathLike,
    model_config: Mapping[str, Any],
    *,
    reinit_head: bool = False,
    new_blocks: bool = False,
    allow_missing_heads: bool = True,
    allow_non_finite: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Loads the variables of a model from a checkpoint.

    A checkpoint is one of:

    - A file of PyTorch (``.pth``). It contains a state dict, or one under "state_dict"
      (OpenMMLab 0.x and 1.x), "model" or "model_state" (PySlowFast). Other entries are ignored.
    - A file of Caffe2 (``.pkl``). It contains blobs, or some under "blobs".
    - A ``.safetensors`` file that ``save`` wrote, or one with PyTorch's names.
    - A work directory of ``nonlocal_jax.train``, whose last finished step is loaded.
    - The directory of one step in it, ``WORKDIR/checkpoints/STEP``.

    The names in a file of PyTorch or Caffe2 determine which code base it is from, see ``SOURCES``.
    PyTorch's names may begin with "module.", and ``num_batches_tracked`` may be missing. If a run
    averaged its weights (EMA), the average has the plain names and is loaded. The second copy,
    mmengine's "ema_state_dict" or the entries "ema_..." of mmcv 1.x, is the state that training
    resumes from. It is not loaded.

    A file of PyTorch without heads (an ImageNet classifier such as torchvision's or resnet50_v1c,
    a detector) fills the backbone only. In a segmentation network, the heads are initialized, and
    so are blocks in the backbone if the file has none. A video network needs ``reinit_head`` for
    its classifier and ``new_blocks`` for its blocks. A logged warning lists the modules that were
    initialized.

    Weights of networks for images inflate: a kernel that spans T frames is T copies of the kernel
    for images, divided by T.

    Args:
      path: The checkpoint.
      model_config: The model config, see ``create_model``.
      reinit_head: Whether to initialize the classifiers instead of loading them.
      new_blocks: Whether to initialize the blocks instead of loading them. The checkpoint may have
        no blocks or others.
      allow_missing_heads: Whether to accept a file that contains only a backbone, to start a
        training run from it.
      allow_non_finite: Whether to accept values that are NaN or infinite, or that float32 cannot
        represent.
      seed: Seed of the modules that are initialized, as in
        ``model.init(jax.random.key(seed), ...)``.

    Returns:
      ``{"params": ..., "batch_stats": ...}``, nested dicts of NumPy arrays. Arrays from a file are
      float32. Arrays from a work directory have the type that they were saved in.

    Raises:
      InputError: The checkpoint is missing or damaged, contains anything but tensors or values that
        are not finite, or does not fit the model. The message lists all names that are missing, are
        not in the model or have a different shape. A checkpoint of nonlocal_jax also does not fit
        if its model config has the same shapes but describes another function.
    """
    path = _existing(path)
    options = {
        "reinit_head": reinit_head,
        "new_blocks": new_blocks,
        "allow_non_finite": allow_non_finite,
        "seed": seed,
    }
    if path.is_dir():
        arrays, config = orbax.read(path)
        config = _model_config.check(path, config)
        return _variables.from_flax(path, arrays, config, model_config, dtype=None, **options)
    arrays, config = read_file(path)
    if any(name.startswith("params/") for name in arrays):
        return _variables.from_flax(path, arrays, config, model_config, dtype=np.float32, **options)
    options["allow_missing_heads"] = allow_missing_heads
    return _variables.from_torch(path, arrays, model_config, **options)


def saved_step(path: PathLike) -> epath.Path | None:
    """Returns the directory of the saved step that ``load`` reads from a checkpoint.

    Its parent's parent is the work directory. For a file, the result is None. A run may save
    further steps, so load the returned directory to get this one.

    Raises:
      InputError: The checkpoint is missing or damaged.
    """
    path = _existing(path)
    return orbax.step_directory(path) if path.is_dir() else None


def _existing(path: PathLike) -> epath.Path:
    path = as_path(path)
    if is_bucket(path):
        with bucket_errors(path):
            if path.is_dir():
                return path
        raise InputError(
            f"there is no work directory and no saved step at {path}; copy files to a local disk"
        )
    if not path.exists():
        raise InputError(
            f"there is no checkpoint at {path}; use a work directory, a saved step, or a "
            ".safetensors, .pth or .pkl file"
        )
    return path


def read_file(path: PathLike) -> tuple[Arrays, dict[str, Any] | None]:
    """Reads the arrays in a file by name, and the model config, or None if there is none.

    Raises:
      InputError: The file cannot be read, is damaged, or contains anything but tensors.
    """
    arrays, config = {}, None
    if os.fspath(path).endswith(".safetensors"):
        arrays, config = safetensors.read(path)
    else:
        arrays = torch_file.read_state_dict(path)
    if len(arrays) > _MAX_ARRAYS or any(len(name) > _MAX_NAME for name in arrays):
        raise InputError(
            f"{path} has {len(arrays):,} arrays, with names of up to "
            f"{max(map(len, arrays)):,} characters; use a checkpoint of one network, with at most "
            f"{_MAX_ARRAYS:,} arrays and {_MAX_NAME} characters"
        )
    return arrays, None if config is None else _model_config.check(path, config)


def from_torch(
    state_dict: Mapping[str, np.ndarray],
    model_config: Mapping[str, Any],
    *,
    reinit_head: bool = False,
    new_blocks: bool = False,
    allow_non_finite: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Like ``load``, for a state dict of NumPy arrays."""
    return _variables.from_torch(
        "the state dict",
        state_dict,
        model_config,
        reinit_head=reinit_head,
        new_blocks=new_blocks,
        allow_non_finite=allow_non_finite,
        seed=seed,
    )


def to_torch(variables: Mapping[str, Any], model_config: Mapping[str, Any]) -> Arrays:
    """Returns the variables with PyTorch's names and layout, without ``num_batches_tracked``.

    A collection may be left out. For example, ``{"params": gradients}`` returns the gradients with
    PyTorch's names.

    Raises:
      InputError: The variables do not fit the model, or no network with these names computes the
        function of the model, see ``Source.lacking``.
    """
    if lacking := names.sources(model_config)[0].lacking(model_config):
        options = ", ".join(f"{name}={value!r}" for name, value in lacking.items())
        raise InputError(
            f"no network with PyTorch's names has {options}, so they would name another function; "
            "save a .safetensors file instead (nonlocal_jax.convert.save, or experiments.convert "
            "without --reverse)"
        )
    leaves = [
        leaf for leaf in names.leaves(model_config) if leaf.path.partition("/")[0] in variables
    ]
    arrays = fit.flatten(variables, {leaf.path: leaf.shape for leaf in leaves})
    return {leaf.name: leaf.to_torch(arrays[leaf.path]) for leaf in leaves}


def save(
    path: PathLike,
    variables: Mapping[str, Any],
    model_config: Mapping[str, Any],
    *,
    dataset: Mapping[str, Any] | None = None,
) -> None:
    """Writes a ``.safetensors`` file that ``load`` reads, in float32.

    The names are Flax's, joined by "/", collection first
    ("params/backbone/layer1_0/conv1/kernel"). The file's metadata contains the model config as JSON
    under "model_config", and the dataset under "dataset".

    Args:
      path: The file. Its name ends in ".safetensors".
      variables: The variables of the model.
      model_config: The model config, see ``create_model``.
      dataset: The classes of the model, as ``nonlocal_jax.data.Dataset.to_json`` and
        ``read_dataset`` return them.

    Raises:
      InputError: The path has another suffix, the variables or the dataset do not fit the model, or
        the file cannot be written.
    """
    if not os.fspath(path).endswith(".safetensors"):
        raise InputError(
            f"cannot save {path}: load would read it as a file of PyTorch; use a path that ends in "
            ".safetensors, or nonlocal_jax.convert.export_torch for a .pth file"
        )
    if dataset is not None:
        dataset = _dataset.check(path, dataset, model_config)
    arrays = fit.flatten(variables, names.shapes(model_config))
    tensors = {name: np.asarray(array, np.float32, order="C") for name, array in arrays.items()}
    safetensors.write(path, tensors, model_config, dataset)


def export_torch(
    path: PathLike, variables: Mapping[str, Any], model_config: Mapping[str, Any]
) -> None:
    """Writes ``{"meta": ..., "state_dict": ...}`` as PyTorch does, in float32.

    ``torch.load`` reads the file, and ``load_state_dict(strict=True)`` of the same network of
    mmsegmentation or mmaction2 accepts it.

    Raises:
      InputError: The path ends in ".safetensors", the variables do not fit the model, no network
        with these names computes the function of the model, or the file cannot be written.
    """
    if os.fspath(path).endswith(".safetensors"):
        raise InputError(
            f"cannot export {path}: this function writes a file of PyTorch; use a path that ends "
            "in .pth, or nonlocal_jax.convert.save for a .safetensors file"
        )
    whole = {collection: variables.get(collection, {}) for collection in fit.COLLECTIONS}
    state_dict = OrderedDict()
    for name, array in to_torch(whole, model_config).items():
        state_dict[name] = np.asarray(array, np.float32)
        if name.endswith(".running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            state_dict[counter] = np.zeros((), np.int64)
    meta = {
        "creator": f"nonlocal_jax {nonlocal_jax.__version__}",
        "model_config": json.dumps(dict(model_config), sort_keys=True),
    }
    with replacing(path) as partial:
        torch_file.write(partial, {"meta": meta, "state_dict": state_dict})


def read_model_config(path: PathLike) -> dict[str, Any]:
    """Returns the model config in a ``.safetensors`` file that ``save`` wrote.

    Raises:
      InputError: The file cannot be read or has no model config.
    """
    config, _ = safetensors.read_metadata(path)
    if config is None:
        raise InputError(f"{path} has no model config; use a file that nonlocal_jax wrote")
    return _model_config.check(path, config)


def read_dataset(path: PathLike) -> dict[str, Any] | None:
    """Returns the classes that a checkpoint was trained on, without loading its arrays.

    Args:
      path: A checkpoint, see ``load``.

    Returns:
      ``{"name": ..., "classes": [...], "palette": [[r, g, b], ...]}`` for
      ``nonlocal_jax.data.Dataset.from_json``. None if the checkpoint has no such entry: a file of
      PyTorch, a file of another project, or a training source without a ``Dataset``.

    Raises:
      InputError: The checkpoint is missing or damaged, or the entry is invalid: a field is missing
        or has the wrong type, or the number of classes is not that of the model.
    """
    path = _existing(path)
    if path.is_dir():
        config, dataset = orbax.read_metadata(path)
    elif path.suffix == ".safetensors":
        config, dataset = safetensors.read_metadata(path)
    else:
        return None
    if dataset is None:
        return None
    return _dataset.check(path, dataset, _model_config.check(path, config))
