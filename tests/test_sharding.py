"""Meshes of devices that are not there; programs on several are tested beside what they run."""

import types

import jax
import numpy as np
import pytest

from nonlocal_jax import sharding
from nonlocal_jax.errors import InputError


def abstract(data, context):
    return jax.sharding.AbstractMesh((data, context), (sharding.DATA, sharding.CONTEXT))


def of_processes(rows):
    """A mesh whose devices, a row to an image, belong to these processes."""
    device = np.vectorize(lambda process: types.SimpleNamespace(process_index=process))
    devices = device(np.array(rows))
    return types.SimpleNamespace(devices=devices, shape=abstract(*devices.shape).shape)


def test_a_mesh_of_all_devices():
    assert dict(sharding.make_mesh().shape) == {"data": jax.device_count(), "context": 1}


@pytest.mark.parametrize("context", [0, 4, 12])
def test_devices_that_do_not_divide_are_refused(context):
    message = rf"6 devices cannot .* {context} at a time: set mesh\.context to one of 1, 2, 3, 6$"
    with pytest.raises(InputError, match=message):
        sharding.make_mesh([None] * 6, context=context)


@pytest.mark.parametrize(
    ("shape", "batch_size", "message"),
    [
        ((8, 1), 20, "20 does not divide over 8 devices: set data.batch_size to 16 or 24"),
        ((4, 2), 6, "6 does not divide over 8 devices, 2 to an image: .* to 4 or 8"),
        ((4, 2), 3, "batch of 3 .* to 4$"),
        ((2, 1), 0, "batch of 0 .* to 2$"),
    ],
)
def test_batches_that_do_not_divide_are_refused(shape, batch_size, message):
    with pytest.raises(InputError, match=message):
        sharding.check_batch_size(batch_size, abstract(*shape))


def test_images_are_counted_by_the_groups_that_share_them():
    sharding.check_batch_size(4, abstract(4, 2))
    sharding.check_batch_size(2, abstract(1, 8))


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([[0], [0], [1], [1]], {0: (0, 2), 1: (1, 2)}),
        ([[1, 1], [0, 0]], {0: (1, 2), 1: (0, 2)}),  # in the order of the rows
        ([[0, 1]], {0: (0, 1), 1: (0, 1)}),
        ([[0, 1], [2, 3]], {0: (0, 2), 1: (0, 2), 2: (1, 2), 3: (1, 2)}),
    ],
)
def test_processes_read_the_images_of_their_devices(monkeypatch, rows, parts):
    monkeypatch.setattr(jax, "process_count", lambda: len(parts))
    for process, part in parts.items():
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert sharding.data_shard(of_processes(rows)) == part


@pytest.mark.parametrize("rows", [[[0, 0], [0, 1], [1, 1]], [[0, 0], [0, 0], [1, 1]]])
def test_processes_that_share_some_images_only_are_refused(monkeypatch, rows):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="do not share whole images 2 at a time"):
        sharding.data_shard(of_processes(rows))
