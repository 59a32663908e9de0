"""The train step compiled ahead of time for TPUs that are not there."""

import importlib.metadata
import math
import os
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from nonlocal_jax.errors import InputError, first_line
from nonlocal_jax.models import create_model
from nonlocal_jax.sharding import batch_sharding, check_batch_size, make_mesh
from nonlocal_jax.topology import compiled_report, topology_devices
from nonlocal_jax.train.optimizer import create_optimizer
from nonlocal_jax.train.state import abstract_state
from nonlocal_jax.train.step import make_train_step


def _libtpu_version() -> str:
    # libtpu may lie in a directory that Python does not import from.
    library = pathlib.Path(os.environ.get("TPU_LIBRARY_PATH", ""))
    found = importlib.metadata.distributions(
        name="libtpu", path=[*sys.path, str(library.parent.parent)]
    )
    return next((distribution.version for distribution in found), "unknown")


def compile_train_step(config: ConfigDict, topology: str) -> dict[str, Any]:
    """Compiles the train step of an experiment for a TPU topology and reports its cost.

    The step, the mesh and the shardings are those of ``train``; only arrays are missing. Needs the
    libtpu library, no TPU.

    Args:
      config: of the experiment; ``config.data.batch_size`` is the global batch.
      topology: generation and chips, such as "v5e:2x4".

    Returns:
      Plain values for JSON: the experiment, the topology, and what ``compiled_report`` gives for
      one step.

    Raises:
      InputError: no such topology, the batch does not divide over its chips, or the step does not
        fit into their memory.
    """
    devices = topology_devices(topology)
    mesh = make_mesh(devices, context=config.mesh.context)
    check_batch_size(config.data.batch_size, mesh)
    model = create_model(config.model)
    tx, _ = create_optimizer(config)
    state = abstract_state(model, tx, mesh=mesh, seed=config.seed, image_size=config.data.crop)
    pixels = (config.data.batch_size, *config.data.crop)
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=batch_sharding(mesh))
        for name, shape in {"image": (*pixels, 3), "label": pixels}.items()
    }

    start = time.monotonic()
    lowered = make_train_step(model, config, mesh).lower(state, batch)
    lowered_at = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"a batch of {config.data.batch_size} does not fit into {topology}: {first_line(error)}"
        ) from error
    compiled_at = time.monotonic()

    chips = len({tuple(device.coords) for device in devices})
    cores = len(devices) // chips  # a TPU v3 or 7x chip has two devices
    return {
        "experiment": config.name,
        "topology": topology,
        "device_kind": devices[0].device_kind,
        "chips": chips,
        "batch_size": config.data.batch_size,
        "crop": list(config.data.crop),
        "dtype": config.model.dtype,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        **compiled_report(compiled, cores),
        "lower_seconds": round(lowered_at - start, 1),
        "compile_seconds": round(compiled_at - lowered_at, 1),
        "versions": {
            "jax": jax.__version__,
            "libtpu": _libtpu_version(),
        },
    }
