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
from nonlocal_jax.sharding import batch_sharding, check_batch_size, make_mesh, topology_devices
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
      Plain values for JSON. ``bytes_per_chip`` is the compiler's own allocation: the state's
      memory is counted in ``arguments`` and, being donated, again in ``outputs`` and ``aliased``;
      ``peak`` is the most that is in use at a time. ``flops_per_chip`` (multiply and add are two)
      and ``bytes_accessed_per_chip`` of one step are the compiler's estimates.

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
    cores = len(devices) // chips  # TPU v3 and 7x show two devices a chip
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        "experiment": config.name,
        "topology": topology,
        "device_kind": devices[0].device_kind,
        "chips": chips,
        "batch_size": config.data.batch_size,
        "crop": list(config.data.crop),
        "dtype": config.model.dtype,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        "bytes_per_chip": {
            "arguments": cores * memory.argument_size_in_bytes,
            "outputs": cores * memory.output_size_in_bytes,
            "aliased": cores * memory.alias_size_in_bytes,
            "temporaries": cores * memory.temp_size_in_bytes,
            "generated_code": cores * memory.generated_code_size_in_bytes,
            "peak": cores * memory.peak_memory_in_bytes,
        },
        "flops_per_chip": cores * cost["flops"],
        "bytes_accessed_per_chip": cores * cost["bytes accessed"],
        "lower_seconds": round(lowered_at - start, 1),
        "compile_seconds": round(compiled_at - lowered_at, 1),
        "versions": {
            "jax": jax.__version__,
            "libtpu": _libtpu_version(),
        },
    }
