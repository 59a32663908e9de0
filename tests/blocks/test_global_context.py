"""The global context block against its formulas, with all poolings, fusions and transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nonlocal_jax.blocks import GlobalContextBlock
from nonlocal_jax.errors import InputError


def setup_block(block, shape=(2, 4, 3, 8)):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(shape))
    variables = block.init(jax.random.key(0), x.astype(jnp.float32))
    variables = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape)), variables)
    return x, variables


def dense(p, x):
    return x @ np.asarray(p["kernel"]) + np.asarray(p["bias"])


def expected_transform(p, c):
    """W2 ReLU(LayerNorm(W1 c)), or one linear map."""
    if "conv1" in p:
        c = dense(p["conv1"], c)
        if "norm" in p:
            c = (c - c.mean(-1, keepdims=True)) / np.sqrt(c.var(-1, keepdims=True) + 1e-5)
            c = c * np.asarray(p["norm"]["scale"]) + np.asarray(p["norm"]["bias"])
        c = np.maximum(c, 0)
    return dense(p["conv2"], c)


@pytest.mark.parametrize("pooling", ["attention", "average"])
@pytest.mark.parametrize("fusion", [("add",), ("multiply",), ("multiply", "add")])
@pytest.mark.parametrize("transform", [{}, {"ratio": 0.5, "norm": None}, {"ratio": None}])
def test_formula(x64, pooling, fusion, transform):
    block = GlobalContextBlock(pooling=pooling, fusion=fusion, **transform)
    x, variables = setup_block(block)
    p = variables["params"]
    flat = np.asarray(x).reshape(2, -1, 8)
    if pooling == "attention":
        scores = np.exp(dense(p["conv_mask"], flat))
        context = (scores / scores.sum(1, keepdims=True) * flat).sum(1, keepdims=True)
    else:
        context = flat.mean(1, keepdims=True)
    expected = flat
    if "multiply" in fusion:
        expected = expected / (1 + np.exp(-expected_transform(p["channel_mul_conv"], context)))
    if "add" in fusion:
        expected = expected + expected_transform(p["channel_add_conv"], context)
    np.testing.assert_allclose(
        block.apply(variables, x), expected.reshape(x.shape), rtol=1e-10, atol=1e-12
    )


def test_squeeze_and_excitation_has_its_parameters():
    block = GlobalContextBlock(ratio=1 / 4, pooling="average", fusion=("multiply",), norm=None)
    _, variables = setup_block(block)
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes == {
        "channel_mul_conv": {
            "conv1": {"kernel": (8, 2), "bias": (2,)},
            "conv2": {"kernel": (2, 8), "bias": (8,)},
        }
    }


def test_initialization_of_the_reference():
    x = jnp.zeros((1, 4, 4, 512))
    p = GlobalContextBlock().init(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(p["conv_mask"]["kernel"].std(), (2 / 512) ** 0.5, rtol=0.15)
    np.testing.assert_array_equal(p["conv_mask"]["bias"], 0)
    first = p["channel_add_conv"]["conv1"]
    for array in first.values():
        assert 0.95 * 512**-0.5 < jnp.abs(array).max() <= 512**-0.5
    for array in p["channel_add_conv"]["conv2"].values():
        np.testing.assert_array_equal(array, 0)


def test_conv_mask_bias_shifts_nothing(x64):
    x, variables = setup_block(GlobalContextBlock())
    y = GlobalContextBlock().apply(variables, x)
    variables["params"]["conv_mask"]["bias"] += 3.0
    np.testing.assert_allclose(GlobalContextBlock().apply(variables, x), y, rtol=1e-12)


@pytest.mark.parametrize("ratio", [16, 0, -1, float("nan")])
def test_ratios_above_one_are_refused(ratio):
    """16 is the ratio of other libraries, and would make W1 16 times as wide as x."""
    with pytest.raises(InputError, match=r"ratio is .*up to 1, such as 1/16, or None"):
        GlobalContextBlock(ratio=ratio).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))


def test_fusion_is_a_tuple():
    with pytest.raises(InputError, match=r"fusion is 'add'; use \('add',\)"):
        GlobalContextBlock(fusion="add").init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))
