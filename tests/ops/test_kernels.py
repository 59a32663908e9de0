"""The kernels of softmax attention, TPU's in interpret mode, and which one "auto" chooses."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from nonlocal_jax import ops
from nonlocal_jax.errors import InputError
from nonlocal_jax.ops import _attention
from nonlocal_jax.ops import _kernels as kernels
from tests.helpers import child_environment

KERNELS = ("flash", "cudnn")


@pytest.fixture
def on_cpu(monkeypatch):
    """Kernels are accepted on the CPU, TPU's in interpret mode."""
    monkeypatch.setattr(_attention, "_KERNELS", {name: ("cpu", "CPUs") for name in KERNELS})
    jax.clear_caches()
    with pltpu.force_tpu_interpret_mode():
        yield
    jax.clear_caches()


def value_and_gradients(implementation, given, weights, mask):
    op = functools.partial(
        ops.softmax_attention,
        scale=given[0].shape[-1] ** -0.5,
        implementation=implementation,
        mask=mask,
    )
    y, vjp = jax.vjp(op, *given)
    return jax.device_get((y, *vjp(weights.astype(y.dtype))))


def assert_as_accurate_as_dense(implementation, n, m, widths, dtype, masked):
    """The RMS errors of output and gradients are at most twice those of "dense"."""
    rng = np.random.default_rng(n)
    shapes = (n, widths[0]), (m, widths[0]), (m, widths[1]), (n, widths[1])
    *given, weights = (jnp.asarray(rng.standard_normal((2, *s)), dtype) for s in shapes)
    mask = jnp.asarray(rng.random((2, m)) < 0.5) if masked else None
    with jax.enable_x64(True):
        wide = [x.astype(np.float64) for x in given]
        exact = value_and_gradients("dense", wide, weights, mask)
    dense = value_and_gradients("dense", given, weights, mask)
    kernel = value_and_gradients(implementation, given, weights, mask)
    for e, d, k in zip(exact, dense, kernel, strict=True):
        error, bound = (np.linalg.norm(x.astype(np.float64) - e) for x in (k, d))
        assert k.dtype == dtype
        assert 0 < error <= 2 * bound


@pytest.mark.parametrize(
    ("n", "m", "widths", "dtype", "masked"),
    [
        (1100, 300, (64, 64), "float32", False),
        (130, 70, (24, 40), "float32", True),
        (200, 1100, (48, 16), "bfloat16", True),
        (1, 513, (32, 32), "bfloat16", False),
    ],
)
@pytest.mark.usefixtures("on_cpu")
def test_flash_is_as_accurate_as_dense(n, m, widths, dtype, masked):
    assert_as_accurate_as_dense("flash", n, m, widths, dtype, masked)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("masked", [False, True])
def test_cudnn_is_given_what_it_takes(masked, monkeypatch):
    """XLA's attention replaces cuDNN's, to test how arguments are padded, sorted and sliced."""
    attention = jax.nn.dot_product_attention

    def replacement(q, k, v, *, implementation, **options):
        assert implementation == "cudnn"
        assert q.shape[1] % 2 == k.shape[1] % 2 == 0
        assert q.shape[-1] == v.shape[-1]
        return attention(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(kernels, "_capability", lambda: 9.0)
    monkeypatch.setattr(jax.nn, "dot_product_attention", replacement)
    with jax.numpy_dtype_promotion("standard"):  # XLA's attention promotes types
        assert_as_accurate_as_dense("cudnn", 37, 29, (24, 40), "bfloat16", masked)


@pytest.mark.usefixtures("on_cpu")
def test_flash_gives_zeros_if_all_keys_are_padding():
    x = jnp.ones((2, 130, 16))
    mask = jnp.zeros((2, 130), bool).at[0].set(True)
    y = ops.softmax_attention(x, x, x, mask=mask, implementation="flash")
    np.testing.assert_allclose(y[0], 1, rtol=1e-6)
    np.testing.assert_array_equal(y[1], 0)


@pytest.mark.parametrize(
    ("platform", "n", "widths", "dtype", "expected"),
    [
        ("cpu", 1448, (64, 64), "float32", "dense"),
        ("cpu", 1449, (64, 64), "float32", "chunked"),
        ("cpu", 2048, (256, 256), "float32", "dense"),
        ("cpu", 2049, (256, 256), "float32", "chunked"),
        ("tpu", 2048, (256, 256), "bfloat16", "dense"),
        ("tpu", 9409, (512, 256), "bfloat16", "flash"),
        ("tpu", 9409, (256, 256), "float64", "chunked"),
        ("tpu", 9409, (256, 256), "float16", "chunked"),
        ("tpu", 9409, (2048, 256), "bfloat16", "chunked"),
        ("cuda", 9409, (256, 256), "bfloat16", "cudnn"),
        ("cuda", 9409, (512, 512), "bfloat16", "chunked"),
        ("cuda", 9409, (20, 20), "bfloat16", "chunked"),
        ("cuda", 9409, (256, 256), "float32", "chunked"),
    ],
)
def test_choice(platform, n, widths, dtype, expected, x64, monkeypatch):
    monkeypatch.setattr(kernels, "_capability", lambda: 9.0)  # as on Hopper
    theta, g = (jax.ShapeDtypeStruct((n, width), dtype) for width in widths)
    assert ops.best_attention(platform, theta, theta, g) == expected


def test_choice_counts_the_matrices_of_all_batch_items():
    one, eight = (jax.ShapeDtypeStruct((b, 1024, 64), jnp.float32) for b in (1, 8))
    assert ops.best_attention("cpu", one, one, one) == "dense"
    assert ops.best_attention("cpu", eight, eight, eight) == "chunked"


@pytest.mark.parametrize(("platform", "expected"), [("tpu", "flash"), ("cuda", "chunked")])
def test_choice_for_mixed_types(platform, expected, monkeypatch):
    monkeypatch.setattr(kernels, "_capability", lambda: 9.0)
    wide, half = (jax.ShapeDtypeStruct((9409, 256), dtype) for dtype in ("float32", "bfloat16"))
    for given in ((wide, half, half), (half, wide, half), (half, half, wide)):
        assert ops.best_attention(platform, *given) == expected


@pytest.mark.parametrize(("platform", "kernels"), [("cpu", False), ("tpu", True)])
def test_auto_follows_the_platform_compiled_for(platform, kernels):
    """Not the platform that this runs on: a program for a pod may be compiled on a laptop."""
    x = jax.ShapeDtypeStruct((1, 9409, 32), jnp.bfloat16)

    def loss(theta, phi, g):
        return jnp.sum(ops.softmax_attention(theta, phi, g).astype(jnp.float32))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(x, x, x)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("tpu_custom_call" in program) == kernels


@pytest.mark.parametrize("implementation", ["flash", "cudnn"])
def test_a_kernel_is_refused_on_other_platforms(implementation):
    x = jnp.ones((3, 8), jnp.bfloat16)
    with pytest.raises(InputError, match=r"compiled for another platform; use implementation="):
        ops.softmax_attention(x, x, x, implementation=implementation)


@pytest.mark.parametrize(
    ("platform", "kernel"), [("cpu", None), ("tpu", "tpu_custom_call"), ("cuda", "cudnn$fmha")]
)
def test_dnl_is_lowered_to_the_kernels_of_nl(platform, kernel):
    """The program may be compiled for another platform than the one that this code runs on."""
    wide, half = (
        jax.ShapeDtypeStruct((1, 8192, 256), dtype) for dtype in (jnp.float32, jnp.bfloat16)
    )
    unary = jax.ShapeDtypeStruct((1, 8192), jnp.bfloat16)

    def loss(*arguments):
        return jnp.sum(ops.disentangled(*arguments, scale=1.25).astype(jnp.float32))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(wide, wide, half, unary)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    kernels = ("tpu_custom_call", "cudnn$fmha")
    assert [name in program for name in kernels] == [name == kernel for name in kernels]


def test_choosing_a_kernel_does_not_initialize_the_devices():
    """``jax.distributed.initialize`` fails after the devices are initialized."""
    code = """
import jax, jax.numpy as jnp
from jax._src import xla_bridge
from nonlocal_jax import ops
x = jax.ShapeDtypeStruct((1, 8192, 256), jnp.bfloat16)
jax.eval_shape(jax.grad(lambda x: ops.softmax_attention(x, x, x).astype("float32").sum()), x)
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=child_environment())


def second_derivatives(implementation, *given):
    """Gradients of the squared norm of the gradients of a loss."""

    def loss(*given):
        y = ops.softmax_attention(*given, implementation=implementation)
        return jnp.sum(jnp.sin(y.astype(jnp.float32)))

    def norm(*given):
        gradients = jax.grad(loss, argnums=(0, 1, 2))(*given)
        return sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in gradients)

    return jax.grad(norm, argnums=(0, 1, 2))(*given)


def test_auto_has_second_derivatives():
    """Although it also traces the kernels of other platforms."""
    given = tuple(jax.random.normal(jax.random.key(i), (1, 2049, 8)) for i in range(3))
    half = [x.astype(jnp.bfloat16) for x in given]
    assert ops.best_attention("tpu", *half) == "flash"
    for platform in ("cpu", "tpu", "cuda"):
        traced = jax.jit(functools.partial(second_derivatives, "auto")).trace(*half)
        traced.lower(lowering_platforms=(platform,))
    actual, expected = (
        second_derivatives(name, *(x.astype(jnp.float32) for x in half))
        for name in ("auto", "dense")
    )
    for a, e in zip(actual, expected, strict=True):
        assert jnp.linalg.norm(a - e) <= 1e-5 * jnp.linalg.norm(e)


@pytest.mark.usefixtures("on_cpu")
def test_second_derivatives_of_a_kernel_are_those_of_chunked():
    given = tuple(jax.random.normal(jax.random.key(i), (1, 24, 8)) for i in range(3))
    actual, expected = (second_derivatives(name, *given) for name in ("flash", "chunked"))
    for a, e in zip(actual, expected, strict=True):
        assert jnp.linalg.norm(a - e) <= 1e-5 * jnp.linalg.norm(e)
