"""Reading where a pixel looks, against the whole attention matrix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nonlocal_jax as nlj
from nonlocal_jax.errors import InputError
from nonlocal_jax.visualize import attention_map
from tests.helpers import TINY, random_variables


def build(**options):
    config = {**TINY, "block": "nonlocal", **options}
    # Bright enough for an attention that is far from uniform.
    images = 5 * jax.random.normal(jax.random.key(1), (1, 33, 48, 3))
    return nlj.create_model(config), random_variables(config), images


@pytest.mark.parametrize("block", ["nonlocal", "disentangled_nonlocal"])
def test_the_map_is_a_row_of_the_attention_matrix(block):
    model, variables, images = build(block=block)
    found = attention_map(model, variables, images, (20, 13))
    assert found.shape == (9, 12)
    assert found.sum() == pytest.approx(1, abs=1e-5)

    apply = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))
    _, sown = apply(variables, images)
    sown = sown["intermediates"]["decode_head"]["block"]
    logits = np.asarray(sown["query"][0][0] @ sown["key"][0][0].T)
    row = logits[(20 * 9 // 33) * 12 + 13 * 12 // 48]
    expected = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-3, atol=1e-6)
    assert np.abs(found - 1 / found.size).max() > 1e-3


def test_the_map_of_pooled_keys_has_their_size():
    model, variables, images = build(block_sub_sample=True)
    assert attention_map(model, variables, images, (32, 47)).shape == (4, 6)


def test_of_several_blocks_one_is_chosen():
    model, variables, images = build(block_in_head=False, block_at=("layer1.0", "layer2.0"))
    with pytest.raises(InputError, match="choose one") as error:
        attention_map(model, variables, images, (0, 0))
    paths = str(error.value).removeprefix("the model has attention blocks at ").split(": ")[0]
    maps = [attention_map(model, variables, images, (0, 0), block=p) for p in paths.split(", ")]
    assert len(maps) == 2
    assert np.abs(maps[0] - maps[1]).max() > 1e-4
    with pytest.raises(InputError, match="there is none at 'head'"):
        attention_map(model, variables, images, (0, 0), block="head")


@pytest.mark.parametrize(
    "options", [{"block": "global_context"}, {"block": "none"}, {"block_mode": "dot_product"}]
)
def test_models_without_softmax_attention_are_refused(options):
    model, variables, images = build(**options)
    with pytest.raises(InputError, match="no attention from pixel to pixel"):
        attention_map(model, variables, images, (0, 0))


@pytest.mark.parametrize("pixel", [(33, 0), (0, -1)])
def test_a_pixel_outside_is_refused(pixel):
    with pytest.raises(InputError, match="outside of the image of size"):
        attention_map(None, {}, jnp.zeros((1, 33, 48, 3)), pixel)


def test_one_image_at_a_time():
    with pytest.raises(AssertionError, match=r"\(2, 32, 32, 3\)"):
        attention_map(None, {}, jnp.zeros((2, 32, 32, 3)), (0, 0))
