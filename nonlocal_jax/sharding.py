"""Device meshes, and how the state, the batch and the positions of an image are sharded over them.

The mesh has three axes. The batch is split over "data" and "fsdp", the state over "fsdp", and the
positions of an image over "context". Functions that place arrays on devices take a ``Shardings``.
"""

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from nonlocal_jax._sharding_checks import (
    check_divides,
    check_fits,
    check_mesh,
    check_specs,
    number_of_parts,
)
from nonlocal_jax.errors import InputError

DATA = "data"
FSDP = "fsdp"
CONTEXT = "context"


def make_mesh(
    devices: Sequence[jax.Device] | None = None, *, fsdp: int = 1, context: int = 1
) -> Mesh:
    """Makes a mesh with the axes "data", "fsdp" and "context".

    Of several TPU slices, only the axis "data" spans the slow network between them, if each slice
    has whole groups of ``fsdp * context`` devices.

    Args:
      devices: Devices of one or more processes. Default: all devices of all processes.
      fsdp: Number of devices that share the state.
      context: Number of devices that share an image.

    Raises:
      InputError: ``fsdp * context`` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    check_divides("mesh.context", context, len(devices), "devices")
    groups = "devices" if context == 1 else f"groups of mesh.context={context} devices"
    check_divides("mesh.fsdp", fsdp, len(devices) // context, groups)
    data = len(devices) // (fsdp * context)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    options = {"devices": devices, "allow_split_physical_axes": True}
    try:
        if slices > 1 and data % slices == 0:
            grid = mesh_utils.create_hybrid_device_mesh(
                (data // slices, fsdp, context), (slices, 1, 1), **options
            )
        else:
            grid = mesh_utils.create_device_mesh((data, fsdp, context), **options)
    except (AssertionError, NotImplementedError, ValueError):
        # No arrangement follows the physical links between the chips. Any order is correct.
        devices = sorted(devices, key=lambda device: getattr(device, "slice_index", 0))
        grid = np.asarray(devices).reshape(data, fsdp, context)
    return Mesh(grid, (DATA, FSDP, CONTEXT), axis_types=(AxisType.Auto,) * 3)


@dataclasses.dataclass(frozen=True)
class Shardings:
    """How the batch and the state are sharded over a mesh.

    If the mesh axis "fsdp" has more than one device, every leaf with two or more axes (a kernel, or
    its momentum) is sharded over it: along its longest axis that can be split evenly, the last of
    several. All other leaves are replicated. ``rules`` come before that. For example, this shards
    the output channels of every kernel, and of its momentum, over the axis "data"::

        Shardings(mesh, rules=((r"conv\\d/kernel$", PartitionSpec(None, None, None, "data")),))

    Attributes:
      mesh: The device mesh, with any number of Auto axes.
      rules: Pairs of a regular expression and a ``PartitionSpec``. The expression is searched for
        in the path of a leaf, such as "params/backbone/layer1_0/conv1/kernel"; the first match
        counts.
      batch_spec: How the batch axis, the first axis of every leaf of a batch, is sharded: a
        ``PartitionSpec`` of at most one entry. Default: over the mesh axes "data" and "fsdp".

    Raises:
      InputError: The mesh has Explicit or Manual axes, or a rule or ``batch_spec`` is invalid.
    """

    mesh: Mesh
    rules: tuple[tuple[str, PartitionSpec], ...] = ()
    batch_spec: PartitionSpec | None = None

    def __post_init__(self) -> None:
        check_mesh(self.mesh)
        if self.batch_spec is None:
            object.__setattr__(self, "batch_spec", PartitionSpec(batch_axes(self.mesh)))
        check_specs(self.mesh.axis_names, self.rules, self.batch_spec)

    @property
    def batch(self) -> NamedSharding:
        """The sharding of every leaf of a batch."""
        return NamedSharding(self.mesh, self.batch_spec)

    @property
    def batch_parts(self) -> int:
        """The number of parts that a batch is split into."""
        return number_of_parts(self.mesh, next(iter(self.batch_spec), None))

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

        Leaves that have their sharding already are returned as they are. If leaves are sharded over
        several processes, all of them must call this method.
        """
        shardings = self.of(tree)
        return jax.tree.map(_place, _gather_from_processes(tree, shardings), shardings)

    def gather(self, tree: Any) -> Any:
        """Inside a compiled function, replicates sharded variables for their use.

        This is fully sharded data parallelism: XLA gathers a parameter before it is used, and its
        gradient is sharded again. Otherwise XLA would split the computation as the parameters are
        split, and its result is wrong for a convolution whose kernel is sharded if the positions
        are split as well (seen on CPUs with jax 0.10.2).
        """
        if not self.rules and self._fsdp == 1:
            return tree
        places = jax.tree.map(lambda _: self.replicated, tree)
        return jax.lax.with_sharding_constraint(tree, places)

    def _of_leaf(self, path: tuple, leaf: Any) -> NamedSharding:
        name = _path(path)
        for pattern, spec in self.rules:
            if re.search(pattern, name):
                check_fits(name, np.shape(leaf), pattern, spec, self.mesh)
                return NamedSharding(self.mesh, spec)
        shape = np.shape(leaf)
        fitting = [(n, axis) for axis, n in enumerate(shape) if n % self._fsdp == 0]
        if self._fsdp == 1 or len(shape) < 2 or not fitting:
            return self.replicated
        _, axis = max(fitting)
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, FSDP))

    def check_rules(self, state: Any) -> None:
        """Requires that every rule matches a leaf of the state.

        Raises:
          InputError: A rule matches no leaf.
        """
        paths = [_path(path) for path, _ in jax.tree.leaves_with_path(state)]
        for pattern, _ in self.rules:
            if not any(re.search(pattern, path) for path in paths):
                near = difflib.get_close_matches(pattern, paths, n=1, cutoff=0.0)
                raise InputError(
                    f"the sharding rule {pattern!r} matches no array of the state; use a regular "
                    f"expression for paths such as {near[0]!r}"
                )

    @property
    def _fsdp(self) -> int:
        return self.mesh.shape.get(FSDP, 1)


def _path(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def batch_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """Returns the axes of a mesh that a batch is split over by default."""
    return tuple(name for name in (DATA, FSDP) if name in mesh.axis_names)


def make_shardings(
    mesh: Mapping[str, Any], devices: Sequence[jax.Device] | None = None
) -> Shardings:
    """Makes the shardings that ``mesh``, a section of a config, describes.

    Args:
      mesh: The sizes ``context`` and ``fsdp``, and ``rules``: pairs of a regular expression and a
        tuple, which has a mesh axis or None for each axis of an array. The last two may be missing.
      devices: See ``make_mesh``.

    Raises:
      InputError: The sizes do not fit the devices, or a rule is invalid.
    """
    rules = ((pattern, PartitionSpec(*spec)) for pattern, spec in mesh.get("rules", ()))
    sizes = {"fsdp": mesh.get("fsdp", 1), "context": mesh["context"]}
    return Shardings(make_mesh(devices, **sizes), tuple(rules))


def _gather_from_processes(tree: Any, shardings: Any) -> Any:
    """Replicates the leaves that other processes hold parts of, unless they are in place."""

    def is_elsewhere(x: Any, sharding: NamedSharding) -> bool:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return False
        return not x.sharding.is_equivalent_to(sharding, x.ndim)

    leaves, structure = jax.tree.flatten(tree)
    elsewhere = list(map(is_elsewhere, leaves, jax.tree.leaves(shardings)))
    if parts := {i: leaves[i] for i, is_part in enumerate(elsewhere) if is_part}:
        everywhere = NamedSharding(next(iter(parts.values())).sharding.mesh, PartitionSpec())
        wholes = jax.jit(lambda parts: parts, out_shardings=everywhere)(parts)
        leaves = [wholes.get(i, leaf) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, leaves)


def _place(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array):
        if x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        if x.is_fully_replicated and not x.is_fully_addressable:
            x = x.addressable_data(0)  # this process's copy
        if not sharding.is_fully_addressable and x.is_fully_addressable:
            x = np.asarray(x)  # JAX moves only NumPy arrays to devices of several processes
    return jax.device_put(x, sharding)


def check_shardings(shardings: Any) -> None:
    """Requires ``Shardings``.

    Raises:
      InputError: It is something else, such as a mesh.
    """
    if not isinstance(shardings, Shardings):
        raise InputError(
            f"shardings is of type {type(shardings).__name__}; use nonlocal_jax.sharding.Shardings,"
            " such as Shardings(mesh)"
        )


def check_batch_size(batch_size: int, shardings: Shardings, accumulate: int = 1) -> None:
    """Requires that a global batch can be split evenly over the devices.

    Args:
      batch_size: Size of the global batch.
      shardings: The sharding of the batch.
      accumulate: Number of micro-batches, each of which is split.

    Raises:
      InputError: ``shardings`` is something else, or the batch size is not a multiple of the number
        of parts. The message gives the nearest sizes that are.
    """
    check_shardings(shardings)
    parts = shardings.batch_parts * accumulate
    below = batch_size // parts * parts
    if below == batch_size and batch_size > 0:
        return
    micro = f" and train.accumulate={accumulate}" if accumulate > 1 else ""
    near = " or ".join(str(n) for n in (below, below + parts) if n > 0)
    raise InputError(
        f"data.batch_size={batch_size} is not a multiple of {parts}, the number of parts that "
        f"{shardings.mesh.size} devices{micro} split a batch into; use {near}"
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
    return jax.lax.with_sharding_constraint(x, PartitionSpec(batch_axes(mesh), CONTEXT))
