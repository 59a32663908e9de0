"""Constructors, which equal their copies."""

import copy
import pickle

import flax.linen as nn
import jax.numpy as jnp
import pytest

from nonlocal_jax.layers import BatchNorm, Constructor, ConvNorm


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_is_equal(duplicate):
    constructor = Constructor(BatchNorm, dtype=jnp.bfloat16, momentum=0.99)
    # A constructor inside of another, and as an attribute of a module.
    for original in (constructor, Constructor(ConvNorm, 3, norm=constructor), ConvNorm(3)):
        same = duplicate(original)
        assert same == original
        assert hash(same) == hash(original)
        assert type(same) is type(original)


def test_other_arguments_make_it_unequal():
    one = Constructor(nn.GroupNorm, 4, epsilon=0.1)
    others = [
        Constructor(nn.GroupNorm, 4, epsilon=0.2),
        Constructor(nn.GroupNorm, 2, epsilon=0.1),
        Constructor(nn.GroupNorm, 4, epsilon=0.1, use_bias=False),
        Constructor(nn.LayerNorm, 4, epsilon=0.1),
        nn.GroupNorm,
    ]
    assert all(one != other for other in others)
    assert one == Constructor(nn.GroupNorm, 4, epsilon=0.1)


def test_a_constructor_may_be_extended():
    one = Constructor(Constructor(BatchNorm, momentum=0.5), epsilon=0.1)
    assert one == Constructor(BatchNorm, epsilon=0.1, momentum=0.5)
    assert one(name="bn") == BatchNorm(momentum=0.5, epsilon=0.1, name="bn")
