"""Meshes and shardings. Programs on several devices are tested with the functions they run."""

from unittest import mock

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, PartitionSpec

from nonlocal_jax import sharding
from nonlocal_jax.errors import InputError
from nonlocal_jax.sharding import Shardings, make_mesh, make_shardings
from nonlocal_jax.topology import topology_devices

KERNELS = ((r"kernel$", PartitionSpec(None, "data")), (r"", PartitionSpec()))


def tree(*shape):
    return {"conv": {"kernel": np.ones(shape, np.float32), "bias": np.ones(3, np.float32)}}


def test_a_mesh_of_all_devices():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "context": 1}
    assert dict(make_mesh(context=4).shape) == {"data": 2, "fsdp": 1, "context": 4}
    assert dict(make_mesh(fsdp=2, context=2).shape) == {"data": 2, "fsdp": 2, "context": 2}


def test_only_the_data_axis_spans_slices():
    """Chips of two slices in any order. Their mesh keeps each slice together."""
    devices = [
        mock.Mock(slice_index=i % 2, process_index=0, platform="cpu", device_kind="cpu", id=i)
        for i in range(16)
    ]
    mesh = make_mesh(devices, fsdp=2, context=4)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 4}
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert {tuple(np.unique(part)) for part in slices} == {(0,), (1,)}
    assert dict(make_mesh(devices, context=16).shape) == {"data": 1, "fsdp": 1, "context": 16}


@pytest.mark.parametrize("context", [0, 4, 12])
def test_a_context_that_does_not_divide_the_devices_is_refused(context):
    message = rf"mesh\.context={context} does not divide 6 devices; use 1, 2, 3 or 6$"
    with pytest.raises(InputError, match=message):
        make_mesh([None] * 6, context=context)
    message = r"mesh\.fsdp=2 does not divide 3 groups of mesh\.context=2 devices; use 1 or 3$"
    with pytest.raises(InputError, match=message):
        make_mesh([None] * 6, fsdp=2, context=2)


@pytest.mark.parametrize(
    ("context", "batch_size", "message"),
    [
        (1, 20, "20 is not a multiple of 8.* 8 devices .*use 16 or 24$"),
        (2, 6, "6 is not a multiple of 4.* 8 devices .*use 4 or 8$"),
        (2, 3, "3 is not a multiple of 4.*use 4$"),
        (4, 0, "0 is not a multiple of 2.*use 2$"),
    ],
)
def test_a_batch_that_cannot_be_split_evenly_is_refused(context, batch_size, message):
    with pytest.raises(InputError, match=rf"data\.batch_size={message}"):
        sharding.check_batch_size(batch_size, Shardings(make_mesh(context=context)))


def test_devices_that_share_images_count_once():
    sharding.check_batch_size(4, Shardings(make_mesh(context=2)))
    sharding.check_batch_size(2, Shardings(make_mesh(context=8)))


def in_processes(grid):
    """The shardings of a mesh whose devices are given by the indices of their processes."""

    def device(process):
        return mock.Mock(process_index=process, platform="cpu", device_kind="cpu")

    devices = np.array([[device(process) for process in row] for row in grid])
    return Shardings(Mesh(devices, ("data", "context")))


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ([[0], [0], [1], [1]], {0: [0, 1, 2, 3], 1: [4, 5, 6, 7]}),
        ([[1, 1], [0, 0]], {0: [4, 5, 6, 7], 1: [0, 1, 2, 3]}),
        ([[0, 1]], {0: range(8), 1: range(8)}),
        ([[0, 1], [2, 3]], {0: range(4), 1: range(4), 2: range(4, 8), 3: range(4, 8)}),
        # Not contiguous.
        ([[0], [1], [0], [1]], {0: [0, 1, 4, 5], 1: [2, 3, 6, 7]}),
        # Shared in part, and of different numbers.
        ([[0, 0], [0, 1], [1, 1], [1, 1]], {0: [0, 1, 2, 3], 1: [2, 3, 4, 5, 6, 7]}),
    ],
)
def test_a_process_reads_the_rows_of_its_devices(grid, expected):
    """Each row of the grid has the devices that share a part of the batch."""
    for process, rows in expected.items():
        assert sharding.process_rows(in_processes(grid), 8, process).tolist() == [*rows]


@pytest.mark.parametrize("axes", ["data", ("data", "model"), ("model", "data")])
def test_the_rows_of_any_mesh_make_the_global_batch(axes):
    devices = np.random.default_rng(0).permutation(jax.devices()).reshape(2, 2, 2)
    shardings = Shardings(
        Mesh(devices, ("data", "model", "context")), batch_spec=PartitionSpec(axes)
    )
    assert sharding.process_rows(shardings, 8).tolist() == [*range(8)]
    batch = {"image": np.arange(24).reshape(8, 3), "label": np.arange(8)}
    placed = sharding.to_global(batch, shardings)
    for name, array in placed.items():
        np.testing.assert_array_equal(array, batch[name])
        assert array.sharding == shardings.batch
    with pytest.raises(InputError, match=r"7 is not a multiple of"):
        sharding.check_batch_size(7, shardings)


def test_a_batch_that_every_device_has_is_one_part():
    shardings = Shardings(make_mesh(), batch_spec=PartitionSpec())
    batch = {"image": np.arange(12.0).reshape(3, 4)}
    assert shardings.batch_parts == 1
    assert list(sharding.process_rows(shardings, 3)) == [0, 1, 2]
    image = sharding.to_global(batch, shardings)["image"]
    assert image.is_fully_replicated
    np.testing.assert_array_equal(image, batch["image"])


@pytest.mark.usefixtures("libtpu")
def test_the_rows_of_a_pod():
    """On v5e:16x16, a host has 2x2 chips of a mesh of 256: two pairs of rows."""
    devices = topologies.get_topology_desc("v5e:16x16", platform="tpu").devices
    shardings = Shardings(make_mesh(devices))
    hosts = {device.process_index for device in devices}
    rows = [sharding.process_rows(shardings, 256, host) for host in hosts]
    assert rows[0].tolist() == [0, 1, 16, 17]
    assert len(rows) == 64
    assert sorted(np.concatenate(rows)) == [*range(256)]
    devices = topologies.get_topology_desc("v5e:2x4", platform="tpu", num_slices=2).devices
    mesh = make_mesh(devices, fsdp=2, context=2)
    slices = [{device.slice_index for device in part.flat} for part in mesh.devices]
    assert slices == [{0}, {0}, {1}, {1}]


@pytest.mark.usefixtures("libtpu")
def test_an_image_stays_in_a_slice():
    mesh = make_mesh(topology_devices("2*v5e:2x4"), context=4)
    slices = [{device.slice_index for device in image.flat} for image in mesh.devices]
    assert slices == [{0}, {0}, {1}, {1}]


def test_the_first_rule_that_matches_shards_a_leaf():
    shardings = Shardings(make_mesh(context=2), KERNELS)
    specs = jax.tree.map(lambda s: s.spec, shardings.of(tree(3, 8)))
    assert specs == {"conv": {"kernel": PartitionSpec(None, "data"), "bias": PartitionSpec()}}
    placed = shardings.place(tree(3, 8))
    assert placed["conv"]["kernel"].addressable_shards[0].data.shape == (3, 2)
    assert shardings.place(placed)["conv"]["kernel"] is placed["conv"]["kernel"]
    everywhere = jax.tree.leaves(Shardings(shardings.mesh).of(tree(3, 8)))
    assert all(s.is_fully_replicated for s in everywhere)


def test_fsdp_shards_the_longest_axis_of_kernels():
    """A rule comes first. Arrays with one axis, or none that can be split, are replicated."""
    config = {"context": 2, "fsdp": 2, "rules": [["special/kernel$", [None, "data"]]]}
    shardings = make_shardings(config)
    shapes = {"a": (3, 3, 8, 8), "b": (1, 1, 8, 4), "special": (2, 8), "odd": (3, 3), "c": (8,)}
    found = shardings.of({name: {"kernel": np.ones(shape)} for name, shape in shapes.items()})
    specs = {name: tuple(leaf["kernel"].spec) for name, leaf in found.items()}
    fsdp = (None, None, None, "fsdp")
    assert specs == {"a": fsdp, "b": fsdp[1:], "special": (None, "data"), "odd": (), "c": ()}
    assert shardings.batch_parts == 4
    message = "'special/kernel\\$' matches no array of the state; use .* paths such as 'a/kernel'"
    with pytest.raises(InputError, match=message):
        shardings.check_rules({"a": {"kernel": np.ones(3)}})


@pytest.mark.parametrize("shape", [(3, 7), (8,)])
def test_a_rule_that_does_not_fit_a_leaf_is_refused(shape):
    with pytest.raises(InputError, match=r"(?s)kernel\$.*conv/kernel.*regular expression"):
        Shardings(make_mesh(context=2), KERNELS).of(tree(*shape))


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Manual])
def test_a_mesh_whose_axes_are_not_auto_is_refused(kind):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), (AxisType.Auto, kind))
    message = rf"'data' \(Auto\), 'fsdp' \({kind.name}\), but .*AxisType\.Auto,\) \* 2\)$"
    with pytest.raises(InputError, match=message):
        Shardings(mesh)


def test_another_object_than_a_mesh_is_refused():
    with pytest.raises(InputError, match=r"is of type list; use a .*make_mesh"):
        Shardings(jax.devices())


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ((("kernel$", PartitionSpec(None, "modle")),), "('kernel$', P(None, 'modle'))"),
        ((("a", PartitionSpec()), ("b", PartitionSpec("data", ("data",)))), "('b', P('data'"),
        ((("(", PartitionSpec("data")),), "('(', P('data'"),
        ((("kernel$", (None, "data")),), "('kernel$', (None, 'data'))"),
        (("kernel$", PartitionSpec("data")), "'kernel$'"),  # one pair that is not in a tuple
        (None, "None"),
    ],
)
def test_an_invalid_rule_is_refused(rules, named):
    with pytest.raises(InputError) as error:
        Shardings(make_mesh(), rules)
    assert str(error.value).startswith(f"the sharding rule {named}")
    assert "a PartitionSpec of the mesh axes 'data', 'fsdp', 'context', with" in str(error.value)


@pytest.mark.parametrize(
    "spec", [PartitionSpec("batch"), "data", PartitionSpec("data", "context"), ()]
)
def test_an_invalid_batch_spec_is_refused(spec):
    with pytest.raises(InputError, match=r"batch_spec is .* axes 'data', .*at most one entry$"):
        Shardings(make_mesh(), batch_spec=spec)
