"""What tests in several places share."""

import functools
import importlib.util
import json
import os
import socket
import sys

import flax.linen as nn
import jax
import numpy as np
from etils.epath import backend
from flax.traverse_util import flatten_dict, unflatten_dict
from fsspec.implementations.memory import MemoryFileSystem

from nonlocal_jax.convert import names
from nonlocal_jax.layers import BatchNorm
from nonlocal_jax.sharding import Shardings, make_mesh
from nonlocal_jax.train import loop

# A network with all parts of the published ones, small enough to build in a moment.
TINY = {
    "num_classes": 3,
    "stage_sizes": (1, 2),
    "strides": (1, 1),
    "dilations": (1, 1),
    "width": 8,
    "head_channels": 8,
    "head_kernel_size": 1,
    "auxiliary_channels": 4,
}

# Norms with statistics over positions, over positions and channels, and over channels.
NORMS = (
    BatchNorm,
    nn.BatchNorm,
    functools.partial(nn.GroupNorm, num_groups=2),
    nn.InstanceNorm,
    nn.LayerNorm,
)

# What is done to an image beside its size, and nothing at all.
AUGMENTATION = {
    "scale_range": (0.5, 2.0),
    "category_max_ratio": 0.75,
    "flip": 0.5,
    "photometric": True,
    "mean": (123.675, 116.28, 103.53),
}
NO_AUGMENTATION = AUGMENTATION | {
    "scale_range": (1.0, 1.0),
    "category_max_ratio": 1.0,
    "flip": 0.0,
    "photometric": False,
}


def random_variables(config, seed=0):
    """Random variables of the model that ``config`` describes, see ``draw``."""
    return draw(unflatten_dict(names.shapes(config), sep="/"), seed)


def draw(tree, seed=0):
    """Random variables of these shapes.

    Unlike those of ``init``: blocks are not the identity, no two channels have the same norm.
    """
    rng = np.random.default_rng(seed)

    def draw_leaf(path, leaf):
        shape = getattr(leaf, "shape", leaf)
        if path.endswith("kernel"):  # features keep their scale
            return rng.standard_normal(shape) / np.prod(shape[:-1]) ** 0.5
        return rng.uniform(0.5, 1.5, shape)  # some are variances

    flat = flatten_dict(tree, sep="/")
    drawn = {path: draw_leaf(path, leaf).astype(np.float32) for path, leaf in flat.items()}
    return unflatten_dict(drawn, sep="/")


def one_device():
    """Everything on the first of the devices that the tests have."""
    return Shardings(make_mesh(jax.devices()[:1]))


def train(config, workdir, source, **options):
    """``nonlocal_jax.train.train``, by default on one device."""
    return loop.train(config, workdir, source, **{"shardings": one_device(), **options})


def read_metrics(workdir):
    """The records of ``metrics.jsonl``, in their order."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def bucket_in_memory(monkeypatch):
    """Lets gs:// be in the memory of this process, for ``epath``. Returns its objects by name."""

    class Bucket(MemoryFileSystem):
        store, pseudo_dirs = {}, [""]

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(os.fspath(path).replace("gs://", "memory://", 1))

    # epath remembers whether TensorFlow is installed.
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name == "gcsfs" else find(name)
    )
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: Bucket())
    return Bucket.store


def free_port():
    """A port for the processes of a run."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def child_environment(**changes):
    """The environment of a process that imports what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **changes}


def wait_for_step(process, step):
    """Reads what a training process prints until it has done so many steps."""
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1].partition("/")[0]) >= step:
            return
    raise AssertionError(process.communicate()[1])
