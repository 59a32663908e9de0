"""Batch normalization against PyTorch's results, and how norms are applied."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nonlocal_jax.layers import BatchNorm, apply_norm


def test_train_and_eval(x64):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 5, 2)) * 3 + 1)
    bn = BatchNorm()
    single = x.astype(jnp.float32)
    variables = bn.init(jax.random.key(0), single, use_running_average=False)
    variables = jax.tree.map(lambda a: a.astype(jnp.float64), variables)
    y, updates = bn.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    flat = np.asarray(x).reshape(-1, 2)
    np.testing.assert_allclose(
        y.reshape(-1, 2), (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5), rtol=1e-10
    )
    # The running variance is unbiased: n / (n - 1) times the variance that normalizes.
    stats = jax.tree.map(np.asarray, updates["batch_stats"])
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


def test_the_statistics_to_use_must_be_chosen():
    with pytest.raises(ValueError, match="use_running_average"):
        BatchNorm().init(jax.random.key(0), jnp.ones((2, 3)))


FROZEN = [functools.partial(norm, use_running_average=True) for norm in (BatchNorm, nn.BatchNorm)]


@pytest.mark.parametrize("norm", FROZEN)
def test_a_frozen_norm_uses_and_keeps_its_statistics(norm):
    x = jax.random.normal(jax.random.key(0), (4, 3)) + 5
    variables = norm().init(jax.random.key(1), x)
    y, updates = nn.apply(
        lambda module: apply_norm(module, x, train=True), norm(), mutable=["batch_stats"]
    )(variables)
    np.testing.assert_allclose(y, x, rtol=1e-4)  # running mean 0 and variance 1
    for old, new in zip(*map(jax.tree.leaves, (variables["batch_stats"], updates)), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "norm",
    [
        BatchNorm,
        nn.BatchNorm,
        *FROZEN,
        functools.partial(nn.GroupNorm, num_groups=2),
        nn.InstanceNorm,
        nn.LayerNorm,
        nn.RMSNorm,
    ],
)
@pytest.mark.parametrize("train", [False, True])
def test_every_norm_is_applied_in_the_same_way(norm, train):
    x, mask = jnp.ones((2, 3, 5, 4)), jnp.ones((2, 3, 5), bool)

    def applied(key):
        apply = nn.init_with_output(
            lambda module: apply_norm(module, x, train=train, mask=mask), norm()
        )
        return apply(key)

    y, _ = jax.eval_shape(applied, jax.random.key(0))
    assert y.shape == x.shape
