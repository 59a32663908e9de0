"""The memory of the operations is linear in the number of positions, forward and backward.

The sizes are what the compiler allocates, so nothing runs. ``tests/experiments/test_memory.py``
compares them with the resident memory of a process.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmark._cases import OPERATIONS
from nonlocal_jax.topology import compiled_report, topology_devices


def allocated_mib(name, positions, channels=64, dtype="float32", device=None, **options):
    """Arguments, results and temporaries of the value and the gradient of an operation."""
    operation = OPERATIONS[name]
    sharding = None if device is None else jax.sharding.SingleDeviceSharding(device)
    shapes = operation.shapes(positions, channels)
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in shapes]
    forward = functools.partial(operation.function, **operation.options(channels), **options)

    def loss(*arrays):
        return jnp.sum(jnp.square(forward(*arrays).astype(jnp.float32)))

    gradient = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(arrays)))))
    sizes = compiled_report(gradient.lower(*arrays).compile())["bytes_per_chip"]
    return sum(sizes[kind] for kind in ("arguments", "outputs", "temporaries")) / 2**20


@pytest.mark.parametrize("name", OPERATIONS)
def test_memory_is_linear_in_the_number_of_positions(name):
    once, twice = allocated_mib(name, 9409), allocated_mib(name, 18818)
    assert twice < 2.1 * once
    # One argument takes 2.3 MiB, a 9409 x 9409 matrix of float32 takes 338 MiB.
    assert once < 25 * 2.3


@pytest.mark.parametrize("name", [n for n in OPERATIONS if OPERATIONS[n].pairwise])
def test_the_dense_implementation_allocates_the_matrix(name):
    assert allocated_mib(name, 9409, implementation="dense") > 338


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("name", ["softmax_attention", "disentangled"])
def test_attention_is_linear_in_the_memory_of_a_tpu(name):
    (device, *_) = topology_devices("v5e:2x2")
    # One argument takes 49 MiB, the matrix would take 19 GiB in this type.
    argument = 100_352 * 256 * 2 / 2**20
    allocated = allocated_mib(name, 100_352, channels=256, dtype="bfloat16", device=device)
    assert allocated < 25 * argument
