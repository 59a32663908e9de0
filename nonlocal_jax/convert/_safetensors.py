"""Reads and writes ``.safetensors`` files with a model config in their metadata."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from nonlocal_jax._files import PathLike, replacing
from nonlocal_jax.errors import InputError, first_line

_CONFIG_KEY = "model_config"


def read(
    path: PathLike, *, with_arrays: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Reads the arrays by name, and the model config, or None if there is none.

    Raises:
      InputError: The file cannot be read or is damaged.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            config = dict(json.loads(metadata[_CONFIG_KEY])) if _CONFIG_KEY in metadata else None
            keys = file.keys() if with_arrays else ()
            return {key: file.get_tensor(key) for key in keys}, config
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error}; check the path and its permissions"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise InputError(
            f"{path} is damaged or not a .safetensors file ({first_line(error)}); "
            "download or save it again"
        ) from error


def write(path: PathLike, arrays: Mapping[str, np.ndarray], model_config: str) -> None:
    """Writes arrays and a model config, given as JSON.

    Raises:
      InputError: The file cannot be written.
    """
    with replacing(path) as partial:
        try:
            safetensors.numpy.save_file(dict(arrays), partial, {_CONFIG_KEY: model_config})
        except safetensors.SafetensorError as error:
            raise InputError(
                f"cannot write {path}: {error}; check the path, its permissions and the free disk "
                "space"
            ) from error
