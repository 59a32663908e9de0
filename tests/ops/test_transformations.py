"""The operations without jit, under jit with a traced scale, and exported with symbolic sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from nonlocal_jax import ops
from nonlocal_jax.errors import InputError


def arrays(n, m, c=4, d=3, leading=(2,), dtype="float32"):
    rng = np.random.default_rng(0)
    shapes = (n, c), (m, c), (m, d)
    return [jnp.asarray(rng.standard_normal((*leading, *s)), dtype) for s in shapes]


def scores(n, m, **options):
    theta, phi, g = arrays(n, m, 1, **options)
    return theta[..., 0], phi[..., 0], g


def disentangled(theta, phi, g, **options):
    return ops.disentangled(theta, phi, g, phi[..., 0], **options)


OPERATIONS = [
    (ops.softmax_attention, arrays),
    (disentangled, arrays),
    (ops.dot_product, arrays),
    (ops.concatenation, scores),
]


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
@pytest.mark.parametrize(("operation", "draw"), OPERATIONS)
def test_arguments_that_are_not_floating_are_refused(operation, draw, dtype):
    for i in range(3):
        given = list(draw(5, 4))
        given[i] = given[i].astype(dtype)
        with pytest.raises(InputError, match=f"has dtype {dtype}; convert it to a floating type"):
            operation(*given)


@pytest.mark.parametrize("operation", [ops.context_pool, ops.channel_whiten])
def test_features_that_are_not_floating_are_refused(operation):
    with pytest.raises(InputError, match="x has dtype int32"):
        operation(jnp.ones((2, 5, 3), jnp.int32))


@pytest.mark.parametrize("implementation", ["chunked", "ring"])
def test_calls_without_jit_compile_once(implementation, caplog):
    given = arrays(600, 300)

    def loss(*given):
        return jnp.sum(ops.softmax_attention(*given, implementation=implementation))

    others = [2 * x for x in given]
    jax.grad(loss)(*given)
    with jax.log_compiles():
        jax.grad(loss)(*others)
    assert "Compiling" not in caplog.text


@pytest.mark.parametrize("operation", [ops.softmax_attention, disentangled])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_traced_scale_equals_a_number(operation, dtype):
    given = arrays(9, 8, dtype=dtype)
    expected = operation(*given, scale=0.7)
    actual = jax.jit(lambda scale: operation(*given, scale=scale))(0.7)
    assert actual.dtype == expected.dtype
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    difference = (actual - expected).astype(jnp.float32)
    assert jnp.max(jnp.abs(difference)) <= tolerance


@pytest.mark.parametrize(("operation", "draw"), OPERATIONS)
def test_export_with_symbolic_sizes_for_two_platforms(operation, draw):
    """One program for all sizes, and for CPU and TPU."""
    b, n, m = export.symbolic_shape("b, n, m")
    given = [
        jax.ShapeDtypeStruct((b, positions, *x.shape[2:]), x.dtype)
        for x, positions in zip(draw(5, 4), (n, m, m), strict=True)
    ]
    exported = export.export(jax.jit(operation), platforms=("cpu", "tpu"))(*given)
    for n, m in ((300, 20), (5, 7)):
        given = draw(n, m, leading=(3,))
        np.testing.assert_allclose(exported.call(*given), operation(*given), rtol=1e-5, atol=1e-6)


def test_export_for_nvidia_has_cudnns_kernel():
    given = [jax.ShapeDtypeStruct((1, 4096, 64), jnp.bfloat16)] * 3
    exported = export.export(jax.jit(ops.softmax_attention), platforms=("cuda",))
    with pytest.raises(ValueError, match=r"cudnn\$fmha"):  # JAX does not promise its stability
        exported(*given)
    check = export.DisabledSafetyCheck.custom_call("__cudnn$fmhaSoftmax")
    exported = export.export(
        jax.jit(ops.softmax_attention), platforms=("cuda",), disabled_checks=(check,)
    )
    assert "cudnn$fmha" in exported(*given).mlir_module()
