"""Meshes and shardings. Programs on several devices are tested with the functions they run."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from nonlocal_jax import sharding
from nonlocal_jax.errors import InputError
from nonlocal_jax.sharding import Shardings, make_mesh

KERNELS = ((r"kernel$", PartitionSpec(None, "data")), (r"", PartitionSpec()))


def tree(*shape):
    return {"conv": {"kernel": np.ones(shape, np.float32), "bias": np.ones(3, np.float32)}}


def test_a_mesh_of_all_devices():
    assert dict(make_mesh().shape) == {"data": 8, "context": 1}
    assert dict(make_mesh(context=4).shape) == {"data": 2, "context": 4}


@pytest.mark.parametrize("context", [0, 4, 12])
def test_a_context_that_does_not_divide_the_devices_is_refused(context):
    message = rf"mesh\.context={context} does not divide 6 devices; use 1, 2, 3 or 6$"
    with pytest.raises(InputError, match=message):
        make_mesh([None] * 6, context=context)


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


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([[0], [0], [1], [1]], {0: (0, 2), 1: (1, 2)}),
        ([[1, 1], [0, 0]], {0: (1, 2), 1: (0, 2)}),  # in the order of the examples
        ([[0, 1]], {0: (0, 1), 1: (0, 1)}),
        ([[0, 1], [2, 3]], {0: (0, 2), 1: (0, 2), 2: (1, 2), 3: (1, 2)}),
    ],
)
def test_processes_read_the_images_of_their_devices(rows, parts):
    """Each row of the mesh has the devices of one image, given by their processes."""
    for process, part in parts.items():
        assert sharding._part_of(process, indices(rows), len(rows)) == part


def indices(rows):
    """The examples of each device, as ``Sharding.devices_indices_map`` returns them."""

    class Device(types.SimpleNamespace):
        __hash__ = object.__hash__

    return {
        Device(process_index=process): (slice(i, i + 1, None),)
        for i, row in enumerate(rows)
        for process in row
    }


@pytest.mark.parametrize("rows", [[[0, 0], [0, 1], [1, 1]], [[0, 0], [0, 0], [1, 1]]])
def test_processes_that_share_only_some_images_are_refused(rows):
    with pytest.raises(InputError, match=r"mesh\.context"):
        sharding._part_of(0, indices(rows), len(rows))


def test_the_part_is_determined_from_a_batch_sharding_of_any_rank():
    mesh = jax.make_mesh((2, 2, 2), ("data", "model", "context"))
    shardings = Shardings(mesh, batch_spec=PartitionSpec(("data", "model")))
    assert sharding.process_part(shardings, 8) == (0, 1)
    with pytest.raises(InputError, match=r"6 is not a multiple of 4"):
        sharding.check_batch_size(6, shardings)


def test_the_first_rule_that_matches_shards_a_leaf():
    shardings = Shardings(make_mesh(context=2), KERNELS)
    specs = jax.tree.map(lambda s: s.spec, shardings.of(tree(3, 8)))
    assert specs == {"conv": {"kernel": PartitionSpec(None, "data"), "bias": PartitionSpec()}}
    placed = shardings.place(tree(3, 8))
    assert placed["conv"]["kernel"].addressable_shards[0].data.shape == (3, 2)
    assert shardings.place(placed)["conv"]["kernel"] is placed["conv"]["kernel"]
    everywhere = jax.tree.leaves(Shardings(shardings.mesh).of(tree(3, 8)))
    assert all(s.is_fully_replicated for s in everywhere)


@pytest.mark.parametrize("shape", [(3, 7), (8,)])
def test_a_rule_that_does_not_fit_a_leaf_is_refused(shape):
    with pytest.raises(InputError, match=r"(?s)kernel\$.*conv/kernel.*regular expression"):
        Shardings(make_mesh(context=2), KERNELS).of(tree(*shape))
