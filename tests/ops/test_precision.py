"""Float32 arrays are multiplied in float32 on every platform, where the documentation says so."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from nonlocal_jax import ops
from nonlocal_jax.topology import topology_devices

N, M, C, D = 300, 520, 24, 40
FORMS = ["dense", "chunked", "ring", "auto"]
HIGHEST = jax.lax.Precision.HIGHEST


def loss(*arrays, operation=ops.softmax_attention, **options):
    return jnp.sum(jnp.square(operation(*arrays, **options).astype(jnp.float32)))


def gradient(**options):
    return jax.grad(functools.partial(loss, **options), argnums=(0, 1, 2))


def given(dtype="float32", sizes=((N, C), (M, C), (M, D)), sharding=None):
    return [jax.ShapeDtypeStruct((2, *size), dtype, sharding=sharding) for size in sizes]


def equations(jaxpr, name):
    """All equations of this primitive, also inside of loops and kernels."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from equations(getattr(value, "jaxpr", value), name)


def products(function, *arrays):
    return list(equations(jax.make_jaxpr(function)(*arrays).jaxpr, "dot_general"))


def is_logits(equation):
    """Whether the product sums over the channels of the queries."""
    contracted = equation.params["dimension_numbers"][0][0]
    return [equation.invars[0].aval.shape[axis] for axis in contracted] == [C]


def precisions(equations):
    return {equation.params["precision"] for equation in equations}


@pytest.mark.parametrize("operation", [ops.softmax_attention, ops.disentangled])
@pytest.mark.parametrize("implementation", FORMS)
def test_logits_of_float32_have_float32_precision(implementation, operation):
    """Forward, and where the backward pass computes them again."""
    arrays = given()
    if operation is ops.disentangled:
        arrays.append(jax.ShapeDtypeStruct((2, M), jnp.float32))
    options = {"operation": operation, "implementation": implementation}
    found = products(gradient(**options), *arrays)
    logits = [equation for equation in found if is_logits(equation)]
    assert precisions(logits) == {(HIGHEST, HIGHEST)}
    again = implementation in ("chunked", "ring")
    assert len(logits) >= 1 + again
    # The others have the default precision, unless the caller asks for more.
    assert None in precisions(found)
    found = products(gradient(precision="highest", **options), *arrays)
    assert precisions(found) == {(HIGHEST, HIGHEST)}


@pytest.mark.parametrize("implementation", FORMS)
def test_products_of_bfloat16_are_single(implementation):
    found = products(gradient(implementation=implementation), *given("bfloat16"))
    assert precisions(found) == {None}


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", HIGHEST), ("bfloat16", jax.lax.Precision.DEFAULT)]
)
def test_products_inside_the_tpu_kernel(dtype, expected):
    """Whatever the precision of the context: its compiler refuses the others."""
    arrays = given(dtype, ((512, 32),) * 3)
    with jax.default_matmul_precision("high"):
        jaxpr = jax.make_jaxpr(gradient(implementation="flash"))(*arrays).jaxpr
    kernels = list(equations(jaxpr, "pallas_call"))
    assert len(kernels) == 3  # forward, gradient of the queries, gradient of keys and values
    for kernel in kernels:
        found = equations(kernel.params["jaxpr"], "dot_general")
        assert precisions(found) == {(expected, expected)}


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("implementation", ["dense", "chunked", "ring"])
def test_the_tpu_compiler_keeps_the_precision(implementation):
    """A product of less precision would round its operands to bfloat16."""
    one_chip = jax.sharding.SingleDeviceSharding(topology_devices("v5e:2x2")[0])
    compiled = jax.jit(gradient(implementation=implementation)).lower(*given(sharding=one_chip))
    text = compiled.compile().as_text()
    products = [line for line in text.splitlines() if re.search(r" (convolution|dot)\(", line)]
    highest = [line for line in products if "operand_precision={highest,highest}" in line]
    assert len(highest) >= 2
    assert len(products) > len(highest)


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("channels", [640, 1024])
def test_the_tpu_kernel_fits_into_vector_memory(channels):
    """In float32, with smaller tiles than in bfloat16."""
    one_chip = jax.sharding.SingleDeviceSharding(topology_devices("v5e:2x2")[0])
    arrays = given("float32", ((2048, channels),) * 3, one_chip)
    text = jax.jit(gradient(implementation="flash")).lower(*arrays).compile().as_text()
    assert "tpu_custom_call" in text
