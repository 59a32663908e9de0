"""Operations with their positions split over 1, 2, 4 and 8 devices, against one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from nonlocal_jax import ops

SPLIT = P(None, "context")


def random(*shape):
    return np.random.default_rng(shape).standard_normal(shape)


THETA, PHI, G = random(2, 48, 5), random(2, 32, 5), random(2, 32, 3)
QUERY_SCORES, SCORES = random(2, 48), random(2, 32)
OPERATIONS = {
    ("softmax_attention", "auto"): (THETA, PHI, G),
    ("softmax_attention", "ring"): (THETA, PHI, G),
    ("softmax_attention", "chunked"): (THETA, PHI, G),
    ("disentangled", "auto"): (THETA, PHI, G, SCORES),
    ("disentangled", "ring"): (THETA, PHI, G, SCORES),
    ("dot_product", "reassociated"): (THETA, PHI, G),
    ("dot_product", "dense"): (THETA, PHI, G),
    ("concatenation", "sorted"): (QUERY_SCORES, SCORES, G),
    ("concatenation", "dense"): (QUERY_SCORES, SCORES, G),
    ("context_pool", None): (G, SCORES),
    ("channel_whiten", None): (G,),
}


def masks(name, masked):
    """The masks that an operation takes; some devices have nothing but padding."""
    if not masked:
        return {}
    mask = random(2, 32) < 0.3
    mask[0, :16] = False
    return {"mask": mask} | ({"query_mask": random(2, 48) < 0.3} if name == "disentangled" else {})


def shard(operation, name, devices, check_vma):
    """``operation`` with all its arguments split over the positions."""
    mesh = jax.make_mesh(
        (devices,), ("context",), (AxisType.Auto,), devices=jax.devices()[:devices]
    )
    return jax.shard_map(
        functools.partial(operation, axis_name="context"),
        mesh=mesh,
        in_specs=SPLIT,
        out_specs=P() if name == "context_pool" else SPLIT,  # one vector, on each device
        check_vma=check_vma,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def outputs(masked, devices, check_vma, operations):
    """The outputs and gradients of all operations; on one device without ``shard_map`` for None."""
    results = {}
    for (name, implementation), given in operations.items():
        options = {"implementation": implementation} if implementation else {}
        mask = masks(name, masked)

        def operation(given, mask, name=name, options=options, **axis):
            return getattr(ops, name)(*given, **mask, **options, **axis)

        if devices is not None:
            operation = shard(operation, name, devices, check_vma)
        y, vjp = jax.vjp(lambda *given, mask=mask, f=operation: f(given, mask), *given)
        results[name, implementation] = y, *vjp(jnp.cos(y))
    return results


@pytest.fixture(scope="module")
def one_device():
    """The outputs of all operations on one device, by whether there is a mask."""
    with jax.enable_x64(True):
        return {masked: outputs(masked, None, True, OPERATIONS) for masked in (False, True)}


@pytest.mark.parametrize(
    ("devices", "check_vma", "masked"),
    [
        (1, True, False),
        (2, True, False),
        (4, True, False),
        (8, True, False),
        (8, True, True),
        (4, False, True),
    ],
)
def test_operations_over_devices_equal_one_device(devices, check_vma, masked, one_device, x64):
    """Outputs and all gradients to 1e-10 of the largest."""
    actual = outputs(masked, devices, check_vma, OPERATIONS)
    for name, expected in one_device[masked].items():
        largest = max(np.max(np.abs(e)) for e in expected)
        for e, a in zip(expected, actual[name], strict=True):
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, e, rtol=0, atol=1e-10 * largest, err_msg=str(name))
