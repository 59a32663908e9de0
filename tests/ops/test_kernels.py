"""The kernels of softmax attention, TPU's in interpret mode, and which one "auto" chooses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from nonlocal_jax import ops
from nonlocal_jax.errors import InputError
from nonlocal_jax.ops import _kernels as kernels


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
    with pltpu.force_tpu_interpret_mode():
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
def test_flash_is_as_accurate_as_dense(n, m, widths, dtype, masked):
    assert_as_accurate_as_dense("flash", n, m, widths, dtype, masked)


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


def test_flash_gives_zeros_if_all_keys_are_padding():
    x = jnp.ones((2, 130, 16))
    mask = jnp.zeros((2, 130), bool).at[0].set(True)
    with pltpu.force_tpu_interpret_mode():
        y = ops.softmax_attention(x, x, x, mask=mask, implementation="flash")
    np.testing.assert_allclose(y[0], 1, rtol=1e-6)
    np.testing.assert_array_equal(y[1], 0)


@pytest.mark.parametrize(
    ("platform", "n", "widths", "dtype", "expected"),
    [
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


def test_cudnn_is_refused_without_a_gpu():
    x = jnp.ones((3, 8), jnp.bfloat16)
    with pytest.raises(InputError, match=r"has no NVIDIA GPU.*use implementation='auto'"):
        ops.softmax_attention(x, x, x, implementation="cudnn")
