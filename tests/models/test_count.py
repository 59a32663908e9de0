"""The count of multiply-adds against the formulas."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from nonlocal_jax import ops
from nonlocal_jax.models import count_multiply_adds
from nonlocal_jax.models.count import count_jaxpr


def arrays(*shapes):
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def test_convolutions_and_products():
    def conv(x, kernel):
        return ops.conv(x, kernel, stride=2)

    # The taps in the padding count.
    assert count_multiply_adds(conv, *arrays((2, 9, 7, 3), (3, 5, 3, 4))) == 2 * 5 * 4 * 15 * 3 * 4
    groups = arrays((1, 8, 4), (3, 2, 6))

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2
        )

    assert count_multiply_adds(grouped, *groups) == 8 * 3 * 2 * 6
    product = count_multiply_adds(jnp.matmul, *arrays((5, 2, 3), (5, 3, 4)))
    assert product == 5 * 2 * 3 * 4


def test_the_gradient_of_a_strided_convolution_has_twice_as_many():
    def loss(x, kernel):
        return jnp.sum(ops.conv(x, kernel, stride=2) ** 2)

    shapes = arrays((2, 9, 7, 3), (3, 3, 3, 4))
    forward = 2 * 5 * 4 * 9 * 3 * 4
    assert count_multiply_adds(loss, *shapes) == forward
    assert count_multiply_adds(jax.grad(loss, (0, 1)), *shapes) == 3 * forward


def test_the_kernel_of_the_platform():
    """The forward kernel has two products of all pairs of positions, the backward kernels seven."""
    n, c = 1024, 64

    def loss(*arrays):
        return jnp.sum(ops.softmax_attention(*arrays, implementation="flash"))

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays((1, n, c), (1, n, c), (1, n, c)))
    # "chunked", which other platforms trace, has five in the backward pass.
    for platform, products in (("tpu", 2 + 7), ("cpu", 2 + 5)):
        assert count_jaxpr(traced.jaxpr.jaxpr, platform) == products * n * n * c


def test_an_unrolled_and_a_scanned_network_and_devices():
    def network(x, kernels, scanned):
        if scanned:
            return jax.lax.scan(lambda x, kernel: (ops.conv(x, kernel), None), x, kernels)[0]
        for kernel in kernels:
            x = ops.conv(x, kernel)
        return x

    shapes = arrays((1, 8, 8, 4), (5, 3, 3, 4, 4))
    for scanned in (False, True):
        count = count_multiply_adds(lambda *a, s=scanned: network(*a, s), *shapes)
        assert count == 5 * 8 * 8 * 9 * 4 * 4

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    assert count_multiply_adds(split, *arrays((8, 3))) == 4 * 2 * 3 * 2


def test_inner_functions_loops_and_conditions():
    def scanned(x):
        return jax.lax.scan(
            lambda y, _: (jax.checkpoint(jax.jit(jnp.matmul))(y, y), None), x, length=3
        )

    def chosen(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)

    (x,) = arrays((4, 4))
    assert count_multiply_adds(scanned, x) == 3 * 4**3
    assert count_multiply_adds(chosen, x) == 2 * 4**3
