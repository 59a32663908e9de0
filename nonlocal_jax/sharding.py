"""Device meshes, and how the state, the batch and the positions of an image are sharded over them.

The mesh has an axis "data" for the batch and an axis "context" for the positions of an image.
Functions that place arrays on devices take a ``Shardings``, which replicates the state by default.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nonlocal_jax.errors import InputError

DATA = "data"
CONTEXT = "context"
_BATCH = PartitionSpec(DATA)


def make_mesh(devices: Sequence[jax.Device] | None = None, *, context: int = 1) -> Mesh:
    """Makes a mesh with the axes "data" and "context".

    Args:
      devices: Devices of one or more processes. Default: all devices of all processes.
      context: Number of devices that share an image.

    Raises:
      InputError: ``context`` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if context < 1 or len(devices) % context:
        *others, last = (str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0)
        raise InputError(
            f"mesh.context={context} does not divide {len(devices)} devices; "
            f"use {', '.join(others)}{' or ' if others else ''}{last}"
        )
    shape = len(devices) // context, context
    try:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError):
        # No arrangement follows the physical links between the chips. Any order is correct.
        grid = np.asarray(devices).reshape(shape)
    return Mesh(grid, (DATA, CONTEXT), axis_types=(AxisType.Auto,) * 2)


@dataclasses.dataclass(frozen=True)
class Shardings:
    """How the batch and the state are sharded over a mesh.

    By default every leaf of the state is replicated. ``rules`` shard some of them. For example,
    this shards the output channels of every kernel, and of its momentum, over the axis "data"::

        Shardings(mesh, rules=((r"conv\\d/kernel$", PartitionSpec(None, None, None, "data")),))

    Attributes:
      mesh: The device mesh, with any number of axes.
      rules: Pairs of a regular expression and a ``PartitionSpec``. The expression is searched for
        in the path of a leaf, such as "params/backbone/layer1_0/conv1/kernel"; the first match
        counts. Leaves without a match are replicated.
      batch_spec: How the batch axis, the first axis of every leaf of a batch, is sharded.
    """

    mesh: Mesh
    rules: tuple[tuple[str, PartitionSpec], ...] = ()
    batch_spec: PartitionSpec = _BATCH

    @property
    def batch(self) -> NamedSharding:
        """The sharding of every leaf of a batch."""
        return NamedSharding(self.mesh, self.batch_spec)

    @property
    def batch_parts(self) -> int:
        """The number of parts that a batch is split into."""
        return _number_of_parts(self.mesh, self.batch_spec[0])

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of an array that every device has a copy of."""
        return NamedSharding(self.mesh, PartitionSpec())

    def of(self, tree: Any) -> Any:
        """Returns the sharding of each leaf of a state, of variables or of their shapes.

        Raises:
          InputError: A rule does not fit the shape of a leaf.
        """
        return jax.tree.map_with_path(self._of_leaf, tree)

    def place(self, tree: Any) -> Any:
        """Puts a tree of arrays on the devices, each leaf with its sharding.

        Leaves that have their sharding already are returned as they are.
        """
        return jax.tree.map(_place, tree, self.of(tree))

    def gather(self, tree: Any) -> Any:
        """Inside a compiled function, replicates sharded variables for their use.

        This is fully sharded data parallelism: XLA gathers a parameter before it is used, and its
        gradient is sharded again. Otherwise XLA would split the computation as the parameters are
        split, and its result is wrong for a convolution whose kernel is sharded if the positions
        are split as well (seen on CPUs with jax 0.10.2).
        """
        if not self.rules:
            return tree
        places = jax.tree.map(lambda _: self.replicated, tree)
        return jax.lax.with_sharding_constraint(tree, places)

    def _of_leaf(self, path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in self.rules:
            if re.search(pattern, name):
                self._check(name, np.shape(leaf), pattern, spec)
                return NamedSharding(self.mesh, spec)
        return self.replicated

    def _check(self, name: str, shape: tuple[int, ...], pattern: str, spec: PartitionSpec) -> None:
        parts = [_number_of_parts(self.mesh, axes) for axes in spec]
        fits = len(parts) <= len(shape)
        if not (fits and all(n % part == 0 for n, part in zip(shape, parts, strict=False))):
            raise InputError(
                f"the sharding rule {pattern!r}: {spec} does not fit {name} of shape {shape} on "
                f"the mesh {dict(self.mesh.shape)}; use a regular expression that does not match "
                "this path, or another PartitionSpec"
            )


def _number_of_parts(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    """Returns the number of parts into which ``axes`` splits an array axis.

    ``axes`` is one entry of a ``PartitionSpec``.
    """
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


def _place(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array):
        if x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        if x.is_fully_replicated and not x.is_fully_addressable:
            x = x.addressable_data(0)  # this process's copy
        if not sharding.is_fully_addressable and x.is_fully_addressable:
            x = np.asarray(x)  # JAX moves only NumPy arrays to devices of several processes
    return jax.device_put(x, sharding)


def check_batch_size(batch_size: int, shardings: Shardings) -> None:
    """Requires that a global batch can be split evenly over the devices.

    Raises:
      InputError: The batch size is not a multiple of the number of parts. The message gives the
        nearest sizes that are.
    """
    parts = shardings.batch_parts
    below = batch_size // parts * parts
    if below == batch_size and batch_size > 0:
        return
    near = " or ".join(str(n) for n in (below, below + parts) if n > 0)
    raise InputError(
        f"data.batch_size={batch_size} is not a multiple of {parts}, the number of parts that "
        f"{shardings.mesh.size} devices split a batch into; use {near}"
    )


def process_rows(shardings: Shardings, batch_size: int, process: int | None = None) -> np.ndarray:
    """Returns the rows of a global batch that the devices of a process hold, in increasing order.

    A process reads only these rows. They need not be contiguous. Processes whose devices share
    images have the same rows.

    Args:
      shardings: The sharding of the batch.
      batch_size: Size of the global batch, see ``check_batch_size``.
      process: Index of the process. Default: this process.
    """
    parts, number = _batch_parts(shardings, process)
    size = batch_size // number
    return (np.array(parts)[:, None] * size + np.arange(size)).ravel()


def to_global(batch: Mapping[str, np.ndarray], shardings: Shardings) -> dict[str, jax.Array]:
    """Makes the global arrays of a batch from the rows that each process has read.

    Args:
      batch: Arrays of the rows of ``process_rows``.
      shardings: The sharding of the batch.
    """
    parts, number = _batch_parts(shardings)

    def make(local: np.ndarray) -> jax.Array:
        size = len(local) // len(parts)

        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            place = parts.index((index[0].start or 0) // size)
            return local[place * size : (place + 1) * size]

        shape = number * size, *local.shape[1:]
        return jax.make_array_from_callback(shape, shardings.batch, of_device)

    return {name: make(local) for name, local in batch.items()}


def _batch_parts(shardings: Shardings, process: int | None = None) -> tuple[list[int], int]:
    """Returns the parts of a batch that the devices of a process hold, and the number of parts."""
    number = shardings.batch_parts
    process = jax.process_index() if process is None else process
    indices = shardings.batch.devices_indices_map((number,))
    held = {i.start or 0 for device, (i,) in indices.items() if device.process_index == process}
    return sorted(held), number


def use_mesh(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Returns a context manager that sets the mesh of blocks and ``split_positions``.

    Use it inside a compiled function.
    """
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def are_positions_split() -> bool:
    """Returns whether the current mesh splits the positions of an image or clip over "context"."""
    return jax.sharding.get_abstract_mesh().shape.get(CONTEXT, 1) > 1


def split_positions(x: jax.Array) -> jax.Array:
    """Splits the second axis of ``[B, *S, ...]`` over the mesh axis "context".

    The second axis contains the rows of an image, or the frames of a clip. XLA then splits
    convolutions spatially and exchanges the rows at the borders. The sizes need not be multiples of
    the number of devices. Outside of ``use_mesh``, or if the mesh lacks the axis "data" or
    "context", ``x`` is returned unchanged.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not {DATA, CONTEXT} <= set(mesh.axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(DATA, CONTEXT))


def local_shardings(context: int, groups: int | None = None) -> Shardings:
    """Returns shardings over devices of this process. Every process has its own.

    Args:
      context: Number of devices that share an image. If the process has fewer, it is their number.
      groups: Number of groups of so many devices. Default: as many as there are.

    Raises:
      InputError: ``context`` is not positive.
    """
    if context < 1:
        raise InputError(f"mesh.context is {context}; use a positive integer")
    devices = jax.local_devices()
    context = min(context, len(devices))
    number = (groups or len(devices) // context) * context
    return Shardings(make_mesh(devices[:number], context=context))
