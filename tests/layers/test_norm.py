"""Batch normalization with PyTorch's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nonlocal_jax.blocks import BatchNorm


def test_train_and_eval(x64):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 5, 2)) * 3 + 1)
    bn = BatchNorm()
    variables = bn.init(jax.random.key(0), x.astype(jnp.float32), use_running_average=False)
    variables = jax.tree.map(lambda a: a.astype(jnp.float64), variables)
    y, updates = bn.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    flat = np.asarray(x).reshape(-1, 2)
    np.testing.assert_allclose(
        y.reshape(-1, 2), (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5), rtol=1e-10
    )
    # The running variance is the unbiased one, n / (n - 1) of what normalizes.
    stats = jax.device_get(updates["batch_stats"])
    np.testing.assert_allclose(stats["mean"], 0.1 * flat.mean(0), rtol=1e-10)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-10)

    z = bn.apply({**variables, **updates}, x, use_running_average=True)
    expected = (flat - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(z.reshape(-1, 2), expected, rtol=1e-10)


def test_initialization_does_not_count_as_a_batch():
    variables = BatchNorm().init(jax.random.key(0), jnp.ones((2, 3)), use_running_average=False)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)


def test_a_large_mean_costs_no_precision():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1000, 1)) + 1000, jnp.float32)
    bn = BatchNorm()
    variables = bn.init(jax.random.key(0), x, use_running_average=False)
    y, _ = bn.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(y, (wide - wide.mean()) / wide.std(), atol=1e-3)


def test_statistics_stay_float32_under_bfloat16():
    x = jnp.ones((4, 3), jnp.bfloat16)
    bn = BatchNorm(dtype=jnp.bfloat16)
    variables = bn.init(jax.random.key(0), x, use_running_average=False)
    y, updates = bn.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


def test_mode_must_be_chosen():
    with pytest.raises(ValueError, match="use_running_average"):
        BatchNorm().init(jax.random.key(0), jnp.ones((2, 3)))
