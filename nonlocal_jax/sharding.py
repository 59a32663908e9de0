"""The mesh of devices: the batch is split over "data", the positions of an image over "context"."""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nonlocal_jax.errors import InputError, first_line

DATA = "data"
CONTEXT = "context"


def make_mesh(devices: Sequence[jax.Device] | None = None, *, context: int = 1) -> Mesh:
    """A mesh of these devices, by default of all there are, over all processes.

    Args:
      devices: of one or more processes.
      context: how many devices share an image.

    Raises:
      InputError: the devices do not divide by ``context``.
    """
    devices = jax.devices() if devices is None else devices
    if context < 1 or len(devices) % context:
        fits = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise InputError(
            f"{len(devices)} devices cannot share images {context} at a time: "
            f"set mesh.context to one of {', '.join(map(str, fits))}"
        )
    shape = len(devices) // context, context
    try:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError):
        # No arrangement along the chips' own links: any will do, at the price of longer ways.
        grid = np.asarray(devices).reshape(shape)
    return Mesh(grid, (DATA, CONTEXT), axis_types=(AxisType.Auto,) * 2)


def topology_devices(topology: str) -> list[jax.Device]:
    """The devices of a TPU topology that is not there, to compile for; needs libtpu.

    Args:
      topology: generation and chips, such as "v5e:2x4".

    Raises:
      InputError: there is no such topology.
    """
    try:
        return list(topologies.get_topology_desc(topology, "tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"no TPU topology {topology!r} ({first_line(error)}): "
            "write the generation and its chips, such as v5e:2x4, v6e:16x16 or v5p:2x2x2"
        ) from error


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of the state: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch as it arrives: whole images, split over "data"."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def use_mesh(mesh: Mesh) -> contextlib.AbstractContextManager:
    """For the inside of a compiled function: blocks spread their operations over this mesh."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def split_images(images: jax.Array, mesh: Mesh) -> jax.Array:
    """Inside a compiled function, ``[B, H, W, C]`` with the rows split over "context" too.

    The compiler then splits convolutions by rows, and exchanges those at the seams. Clips are split
    by frames. The sizes need not divide.
    """
    sharding = NamedSharding(mesh, PartitionSpec(DATA, CONTEXT))
    return jax.lax.with_sharding_constraint(images, sharding)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Requires a global batch that every group of devices gets the same share of.

    Raises:
      InputError: it does not divide; the message gives the nearest sizes that do.
    """
    parts = mesh.shape[DATA]
    below = batch_size // parts * parts
    if below == batch_size and batch_size > 0:
        return
    near = [n for n in (below, below + parts) if n > 0]
    shared = f", {mesh.shape[CONTEXT]} to an image" if mesh.shape[CONTEXT] > 1 else ""
    raise InputError(
        f"a batch of {batch_size} does not divide over {mesh.size} devices{shared}: "
        f"set data.batch_size to {' or '.join(map(str, near))}"
    )


def data_shard(mesh: Mesh) -> tuple[int, int]:
    """Which part of every batch this process reads, and how many parts there are.

    A part for each process, or, where several processes share images, for each group of them.

    Raises:
      InputError: processes share some images and not others.
    """
    rows = {process: set() for process in range(jax.process_count())}
    for row, devices in enumerate(mesh.devices):
        for device in devices:
            rows[device.process_index].add(row)
    parts = sorted({tuple(sorted(of_process)) for of_process in rows.values()})
    if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) != len(mesh.devices):
        raise InputError(
            f"the devices of a process do not share whole images {mesh.shape[CONTEXT]} at a time: "
            "set mesh.context to a divisor or a multiple of the devices of a process"
        )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Arrays of the global batch from the part that each process holds."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
