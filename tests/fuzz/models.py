"""A small network, and its weights in every kind of file."""

import functools
import json
import pathlib
import tempfile

import numpy as np

from nonlocal_jax import convert
from nonlocal_jax.convert import names
from tests.helpers import TINY, random_variables

CONFIG = TINY | {"width": 2, "stage_sizes": (1, 1)}


@functools.cache
def pytorch_arrays() -> dict[str, np.ndarray]:
    return convert.to_torch(random_variables(CONFIG), CONFIG)


@functools.cache
def written(suffix: str) -> bytes:
    """The bytes of a file that ``convert`` writes, ".pth" or ".safetensors"."""
    write = convert.save if suffix == ".safetensors" else convert.export_torch
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, f"model{suffix}")
        write(path, random_variables(CONFIG), CONFIG)
        return path.read_bytes()


def warm_up() -> None:
    """Does once in a process what reading each file would do: imports, and tracing the network."""
    shapes = names.shapes

    @functools.cache
    def cached(config: str):
        return shapes(json.loads(config))

    names.shapes = lambda config: cached(json.dumps(dict(config), sort_keys=True))
    with tempfile.TemporaryDirectory() as directory:
        for suffix in (".pth", ".safetensors"):
            path = pathlib.Path(directory, f"model{suffix}")
            path.write_bytes(written(suffix))
            convert.load(path, CONFIG)
