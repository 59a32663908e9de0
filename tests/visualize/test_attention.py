"""``attention_map``, against rows of the whole attention matrix."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nonlocal_jax as nlj
from nonlocal_jax.blocks import DisentangledNonLocalBlock, NonLocalBlock
from nonlocal_jax.errors import InputError
from nonlocal_jax.visualize import attention_map
from tests.helpers import TINY, random_variables


class Network(nn.Module):
    """A block on features at half the resolution of an image or a clip."""

    block: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.block(nn.Dense(8)(x[..., ::2, ::2, :]))


def attention_matrix(query, key):
    logits = np.einsum("...c,jc->...j", query, key.reshape(-1, key.shape[-1]))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def run(block, shape):
    """A network with this block, its variables, an input and the recorded queries and keys."""
    model = Network(block)
    # Bright enough for an attention that is far from uniform.
    inputs = 5 * jax.random.normal(jax.random.key(1), shape)
    variables = jax.tree.map(lambda x: 40 * x, jax.jit(model.init)(jax.random.key(0), inputs))
    apply = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))
    _, recorded = apply(variables, inputs)
    recorded = recorded["intermediates"]["block"]
    return model, variables, inputs, recorded["query"][0][0], recorded["key"][0][0]


@pytest.mark.parametrize("block", [NonLocalBlock, DisentangledNonLocalBlock])
def test_the_map_of_an_image_is_a_row_of_the_attention_matrix(block):
    model, variables, images, query, key = run(block(norm=None), (1, 18, 24, 3))
    found = attention_map(model, variables, images, (13, 7))
    expected = attention_matrix(query[6, 3], key).reshape(9, 12)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert np.abs(found - 1 / found.size).max() > 1e-3


def test_the_map_of_a_clip_with_pooled_keys():
    block = NonLocalBlock(norm=None, sub_sample=True)
    model, variables, clips, query, key = run(block, (1, 4, 18, 24, 3))
    found = attention_map(model, variables, clips, (2, 13, 7))
    expected = attention_matrix(query[2, 6, 3], key).reshape(4, 4, 6)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("axes", ["space", "time"])
def test_positions_that_a_block_does_not_relate_have_no_weight(axes):
    model, variables, clips, query, key = run(NonLocalBlock(axes=axes, norm=None), (1, 4, 6, 8, 3))
    found = attention_map(model, variables, clips, (2, 5, 1))
    related = (2,) if axes == "space" else (slice(None), 2, 0)
    expected = np.zeros((4, 3, 4))
    keys = key[related]
    expected[related] = attention_matrix(query[2, 2, 0], keys).reshape(keys.shape[:-1])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_a_model_with_several_blocks_needs_the_path_of_one():
    config = {**TINY, "block": "nonlocal", "block_at": ("layer1.0", "layer2.0")}
    model, variables = nlj.create_model(config), random_variables(config)
    images = jax.random.normal(jax.random.key(1), (1, 16, 16, 3))
    with pytest.raises(InputError, match="several blocks; set block to ") as error:
        attention_map(model, variables, images, (0, 0))
    paths = str(error.value).split(" set block to ")[1].split(" or ")
    maps = [attention_map(model, variables, images, (0, 0), path) for path in paths]
    assert len(maps) >= 2
    assert np.abs(maps[0] - maps[1]).max() > 1e-4
    with pytest.raises(InputError, match="no block 'head'; set block to "):
        attention_map(model, variables, images, (0, 0), "head")


@pytest.mark.parametrize(
    "options", [{"block": "global_context"}, {"block": "none"}, {"block_mode": "dot_product"}]
)
def test_a_model_without_softmax_attention_is_refused(options):
    config = {**TINY, "block": "nonlocal", **options}
    model, variables = nlj.create_model(config), random_variables(config)
    with pytest.raises(InputError, match="no block of the model has a separate attention map"):
        attention_map(model, variables, jnp.zeros((1, 16, 16, 3)), (0, 0))


@pytest.mark.parametrize(
    ("shape", "position", "order"),
    [
        ((1, 33, 48, 3), (33, 0), "(row, column) from (0, 0) to (32, 47)"),
        ((1, 33, 48, 3), (0, -1), "(row, column) from (0, 0) to (32, 47)"),
        ((1, 4, 33, 48, 3), (0, 0), "(frame, row, column) from (0, 0, 0) to (3, 32, 47)"),
    ],
)
def test_a_position_outside_of_the_input_is_refused(shape, position, order):
    with pytest.raises(InputError) as error:
        attention_map(None, {}, jnp.zeros(shape), position)
    assert str(error.value).endswith(f"outside the input; use {order}")


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (32, 32, 3), (1, 32, 32, 4)])
def test_inputs_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(InputError) as error:
        attention_map(None, {}, jnp.zeros(shape), (0, 0))
    assert str(error.value).startswith(f"inputs have the shape {shape}; use")
