"""Ahead-of-time compilation of the train step for TPUs that this machine does not have."""

import importlib.metadata
import math
import os
import pathlib
import sys
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from nonlocal_jax._files import write_file
from nonlocal_jax.errors import InputError, first_line
from nonlocal_jax.sharding import check_batch_size, make_shardings
from nonlocal_jax.topology import compiled_report, topology_devices
from nonlocal_jax.train.experiment import create_experiment
from nonlocal_jax.train.state import abstract_state
from nonlocal_jax.train.step import make_train_step


def _libtpu_version() -> str:
    # libtpu may be installed in a directory that Python does not import from.
    library = pathlib.Path(os.environ.get("TPU_LIBRARY_PATH", ""))
    found = importlib.metadata.distributions(
        name="libtpu", path=[*sys.path, str(library.parent.parent)]
    )
    return next((distribution.version for distribution in found), "unknown")


def compile_train_step(
    config: ConfigDict, topology: str, text: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Compiles the train step of an experiment for a TPU topology, and reports memory and cost.

    The step, the mesh and the shardings are those of ``train``. No TPU is needed, only the
    libtpu library. Call ``nonlocal_jax.topology.use_tpu_compiler`` first.

    Args:
      config: Config of the experiment. ``config.data.batch_size`` is the global batch size.
      topology: Generation and grid of chips, such as "v5e:2x4".
      text: File that the compiled program is written to, or None.

    Returns:
      Plain values for JSON: the experiment, the topology, and the result of ``compiled_report``.

    Raises:
      InputError: The topology does not exist, the batch cannot be split evenly over its chips, or
        the step does not fit in their memory.
    """
    experiment = create_experiment(config)
    devices = topology_devices(topology)
    shardings = make_shardings(config.mesh, devices)
    check_batch_size(experiment.batch_size, shardings, config.train.get("accumulate", 1))
    state = abstract_state(experiment, shardings)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings.batch),
        experiment.task.batch(config),
    )

    start = time.monotonic()
    lowered = make_train_step(experiment, shardings).lower(state, batch)
    lowered_at = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"data.batch_size={experiment.batch_size} does not fit in the memory of {topology}: "
            f"{first_line(error)}; use a smaller data.batch_size or more chips"
        ) from error
    compiled_at = time.monotonic()
    if text is not None:
        write_file(text, compiled.as_text())

    chips = len({tuple(device.coords) for device in devices})
    cores = len(devices) // chips  # a TPU v3 or 7x chip has two devices
    return {
        "experiment": config.name,
        "topology": topology,
        "device_kind": devices[0].device_kind,
        "chips": chips,
        "batch_size": experiment.batch_size,
        "batch": {
            name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for name, leaf in batch.items()
        },
        "dtype": config.model.get("dtype"),
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        **compiled_report(compiled, cores),
        "lower_seconds": round(lowered_at - start, 1),
        "compile_seconds": round(compiled_at - lowered_at, 1),
        "versions": {
            "jax": jax.__version__,
            "libtpu": _libtpu_version(),
        },
    }
