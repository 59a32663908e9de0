"""One mesh axis, "data": the batch is split over it, everything else is on every device."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nonlocal_jax.errors import InputError

AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of these devices, by default of all there are, over all processes."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of the state: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its leading dimension is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Requires a global batch that every device gets the same share of.

    Raises:
      InputError: it does not divide; the message gives the nearest sizes that do.
    """
    below = batch_size // mesh.size * mesh.size
    if below == batch_size and batch_size > 0:
        return
    near = [n for n in (below, below + mesh.size) if n > 0]
    raise InputError(
        f"a batch of {batch_size} does not divide over {mesh.size} devices: "
        f"set data.batch_size to {' or '.join(map(str, near))}"
    )


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Arrays of the global batch from the part that each process holds."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
