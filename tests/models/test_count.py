"""The count of multiply-adds against the formulas."""

import jax
import jax.numpy as jnp

from nonlocal_jax import ops
from nonlocal_jax.models import count_multiply_adds


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
