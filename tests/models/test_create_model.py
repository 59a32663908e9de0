"""From plain values to a network, and the network's interface."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nonlocal_jax as nlj
from configs import segmentation

TINY = {
    "num_classes": 5,
    "stage_sizes": (1, 1, 1, 1),
    "width": 8,
    "head_channels": 16,
    "auxiliary_channels": 8,
}
BLOCKS = ["nonlocal", "disentangled_nonlocal", "global_context", "none"]


@pytest.mark.parametrize("block", BLOCKS)
def test_inference_and_training_outputs(block):
    model = nlj.create_model({**TINY, "block": block})
    images = jax.random.normal(jax.random.key(0), (2, 41, 50, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    assert set(variables["params"]) == {"backbone", "decode_head", "auxiliary_head"}
    chex.assert_shape(model.apply(variables, images), (2, 41, 50, 5))

    outputs, updates = model.apply(
        variables,
        images,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(2)},
    )
    chex.assert_shape(outputs, (2, 6, 7, 5))
    chex.assert_trees_all_equal_structs(updates["batch_stats"], variables["batch_stats"])


def test_inference_does_not_need_the_auxiliary_head():
    model = nlj.create_model(TINY)
    images = jnp.ones((1, 33, 33, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    expected = model.apply(variables, images)
    for collection in variables.values():
        del collection["auxiliary_head"]
    np.testing.assert_array_equal(model.apply(variables, images), expected)


def test_float64_runs_in_float64(x64):
    model = nlj.create_model(TINY)
    images = jax.random.normal(jax.random.key(0), (1, 33, 33, 3), jnp.float64)
    variables = jax.jit(model.init)(jax.random.key(1), images)
    variables = jax.tree.map(lambda a: a.astype(jnp.float64), variables)
    jaxpr = jax.make_jaxpr(model.apply)(variables, images)
    assert "f32" not in str(jaxpr)


def test_bfloat16_computes_in_bfloat16_and_returns_float32():
    model = nlj.create_model({**TINY, "dtype": "bfloat16"})
    images = jnp.ones((1, 33, 33, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = model.apply(variables, images)
    assert logits.dtype == jnp.float32
    text = str(jax.make_jaxpr(model.apply)(variables, images))
    convolutions = [line for line in text.splitlines() if "= conv_general_dilated" in line]
    assert convolutions
    assert all("bf16[" in line for line in convolutions)


def test_dropout_takes_whole_channels_and_one_option_turns_it_off():
    images = jax.random.normal(jax.random.key(0), (1, 33, 33, 3))

    def train_logits(dropout, key):
        model = nlj.create_model({**TINY, "dropout": dropout})
        variables = jax.jit(model.init)(jax.random.key(1), images)
        apply = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": key}}
        return model.apply(variables, images, **apply)[0]

    one, other = jax.random.split(jax.random.key(2))
    chex.assert_trees_all_equal(train_logits(0.0, one), train_logits(0.0, other))
    for a, b in zip(train_logits(0.5, one), train_logits(0.5, other), strict=True):
        assert not np.allclose(a, b)


def test_a_config_read_from_json_builds_the_same_model():
    config = segmentation.get_config("demo_gc").model.to_dict()
    from_json = json.loads(json.dumps(config))
    assert from_json != config  # lists for tuples
    images = jnp.ones((1, 33, 33, 3))
    a, b = (nlj.create_model(c) for c in (config, from_json))
    variables = jax.jit(a.init)(jax.random.key(0), images)
    np.testing.assert_array_equal(a.apply(variables, images), b.apply(variables, images))


def test_blocks_go_into_the_backbone_on_request():
    model = nlj.create_model({**TINY, "insert_at": ["layer3.0"], "block": "global_context"})
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 33, 33, 3)))["params"]
    assert "block" in params["backbone"]["layer3_0"]
    assert "block" not in params["decode_head"]


def test_the_demo_network_sees_at_most_31_pixels_without_a_block():
    """Its receptive field must not reach the flag, or nothing non-local is shown."""
    config = segmentation.get_config("demo_fcn")
    model = nlj.create_model(config.model)
    images = jnp.ones((1, 64, 64, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    # Positive weights everywhere, so that no path cancels or is cut by a ReLU.
    variables = jax.tree.map(lambda a: jnp.ones(a.shape), shapes)

    @jax.jit
    def gradient(x, row, column):
        """Of one position of the feature map; the resize behind it only interpolates."""

        def logit(x):
            bound = model.bind(variables)
            *_, last = bound.backbone(x)
            return bound.decode_head(last)[0, row, column].sum()

        return jnp.abs(jax.grad(logit)(x)).sum((0, 3))

    for row, column in [(8, 8), (3, 12)]:
        touched = gradient(images, row, column)
        for axis in (0, 1):
            assert 0 < np.ptp(np.flatnonzero(touched.sum(axis))) + 1 <= 31


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "lacks num_classes"),
        ({"num_classes": 3, "widht": 4}, "no option 'widht': did you mean 'width'"),
        ({"num_classes": 3, "block": "non_local"}, "block must be one of none, nonlocal"),
        ({"num_classes": 3, "block": "none", "mode": "gaussian"}, "no option 'mode'"),
        ({"num_classes": 3, "block": "global_context", "mode": "x"}, "no option 'mode'"),
        ({"num_classes": 3, "dtype": "float16"}, "dtype must be one of float32, bfloat16"),
        ({"num_classes": 3, "network": "detector"}, "network must be one of segmentation"),
    ],
)
def test_what_does_not_fit_is_refused(config, message):
    with pytest.raises(nlj.errors.InputError, match=message):
        nlj.create_model(config)


@pytest.mark.parametrize("shape", [(33, 33, 3), (1, 33, 33, 1)])
def test_images_must_be_rgb(shape):
    with pytest.raises(nlj.errors.InputError, match=r"images \[B, H, W, 3\]; got"):
        nlj.create_model(TINY).init(jax.random.key(0), jnp.zeros(shape))
