"""From plain values to a network, and the network's interface."""

import functools
import json
from typing import get_args

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nonlocal_jax as nlj
from configs import segmentation
from nonlocal_jax import models, ops
from nonlocal_jax.blocks import DisentangledNonLocalBlock, NonLocalBlock
from nonlocal_jax.errors import InputError
from nonlocal_jax.heads import FCNHead

TINY = {
    "num_classes": 5,
    "stage_sizes": (1, 1, 1, 1),
    "width": 8,
    "head_channels": 16,
    "auxiliary_channels": 8,
}
BLOCKS = ["nonlocal", "disentangled_nonlocal", "global_context", "none"]
IMAGES = jax.ShapeDtypeStruct((2, 41, 50, 3), jnp.float32)


def shapes_of(model, images=IMAGES):
    """The shapes of the variables."""
    return jax.eval_shape(model.init, jax.random.key(0), images)


def draw(shapes, dtype):
    """Random variables: no block is the identity, and no residual branch is zero."""
    rng = np.random.default_rng(0)

    def values(leaf):
        if len(leaf.shape) > 1:  # features keep their scale
            return rng.standard_normal(leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5
        return rng.uniform(0.5, 1.5, leaf.shape)  # some are variances

    return jax.tree.map(lambda leaf: jnp.asarray(values(leaf), dtype), shapes)


def train(model, variables, images):
    options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(2)}}
    return model.apply(variables, images, **options)


@pytest.mark.parametrize("block", BLOCKS)
def test_inference_and_training_outputs(block):
    model = nlj.create_model({**TINY, "block": block})
    variables = shapes_of(model)
    assert set(variables["params"]) == {"backbone", "decode_head", "auxiliary_head"}
    assert jax.eval_shape(model.apply, variables, IMAGES).shape == (2, 41, 50, 5)

    outputs, updates = jax.eval_shape(functools.partial(train, model), variables, IMAGES)
    assert [logits.shape for logits in outputs] == [(2, 6, 7, 5)] * 2
    chex.assert_trees_all_equal_shapes(updates["batch_stats"], variables["batch_stats"])


def test_inference_does_not_need_the_auxiliary_head():
    model = nlj.create_model(TINY)
    variables = shapes_of(model)
    for collection in variables.values():
        del collection["auxiliary_head"]
    assert jax.eval_shape(model.apply, variables, IMAGES).shape == (2, 41, 50, 5)


def test_float64_runs_in_float64(x64):
    model = nlj.create_model(TINY)
    images, variables = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float64), (IMAGES, shapes_of(model))
    )
    jaxpr = jax.make_jaxpr(model.apply)(variables, images)
    assert "f32" not in str(jaxpr)


def test_bfloat16_computes_in_bfloat16_and_returns_float32():
    model = nlj.create_model({**TINY, "dtype": "bfloat16"})
    variables = shapes_of(model)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert jax.eval_shape(model.apply, variables, IMAGES).dtype == jnp.float32
    text = str(jax.make_jaxpr(model.apply)(variables, IMAGES))
    convolutions = [line for line in text.splitlines() if "= conv_general_dilated" in line]
    assert convolutions
    assert all("bf16[" in line for line in convolutions)


def test_one_option_turns_all_dropout_off():
    model = nlj.create_model({**TINY, "dropout": 0.0})
    options = {"train": True, "mutable": ["batch_stats"]}  # no key for dropout
    apply = functools.partial(model.apply, **options)
    jax.eval_shape(apply, shapes_of(model), IMAGES)


@pytest.mark.parametrize("shape", [(2, 4, 5, 64), (2, 3, 4, 5, 64)])
def test_dropout_drops_whole_channels_of_images_and_frames(shape):
    head = FCNHead(64, channels=64, num_convs=0, concat_input=False, dropout=0.5)
    y = head.apply(
        {"params": {"conv_seg": {"kernel": jnp.eye(64), "bias": jnp.zeros(64)}}},
        jnp.ones(shape),
        train=True,
        rngs={"dropout": jax.random.key(0)},
    )
    dropped = y == 0
    chex.assert_trees_all_equal(dropped, jnp.broadcast_to(dropped[..., :1, :1, :], shape))
    channels = dropped[..., 0, 0, :].reshape(-1, 64)
    assert 0.3 < channels.mean() < 0.7
    assert len(np.unique(channels, axis=0)) == len(channels)


def test_a_config_read_from_json_builds_the_same_model():
    config = segmentation.get_config("demo_gc").model.to_dict()
    from_json = json.loads(json.dumps(config))
    assert from_json != config  # lists instead of tuples
    text, expected = (
        str(jax.make_jaxpr(model.apply)(shapes_of(model), IMAGES))
        for model in map(nlj.create_model, (config, from_json))
    )
    assert text == expected


@pytest.mark.parametrize("block", BLOCKS[:3])
def test_blocks_may_be_in_the_backbone_and_in_the_head_at_once(block):
    places = {"block_at": ["layer2.0", "layer3.0"], "block_position": "after_residual"}
    config = {**TINY, "block": block, **places}
    model = nlj.create_model(config)
    variables = shapes_of(model)
    params = variables["params"]
    assert {n for n in params["backbone"] if "block" in n} == {"layer2_0_block", "layer3_0_block"}
    assert "block" in params["decode_head"]
    assert "block" not in params["auxiliary_head"]
    jax.eval_shape(functools.partial(train, model), variables, IMAGES)

    only_backbone = shapes_of(nlj.create_model({**config, "block_in_head": False}))["params"]
    assert "block" not in only_backbone["decode_head"]
    chex.assert_trees_all_equal_shapes(only_backbone["backbone"], params["backbone"])


def test_blocks_in_backbone_and_head_are_trained():
    """Each has a gradient of its own."""
    model = nlj.create_model(
        {**TINY, "stage_sizes": (1, 1), "strides": (1, 1), "dilations": (1, 1)}
        | {"block_at": ("layer2.0",), "head_kernel_size": 1, "dropout": 0.0}
    )
    variables = draw(shapes_of(model), jnp.float32)
    images = jax.random.normal(jax.random.key(0), (2, 17, 17, 3))

    @jax.jit
    def gradient(params):
        def loss(params):
            outputs, _ = train(model, {**variables, "params": params}, images)
            return sum(jnp.sum(jnp.sin(logits)) for logits in outputs)

        return jax.grad(loss)(params)

    found = gradient(variables["params"])
    for block in (found["backbone"]["layer2_0"]["block"], found["decode_head"]["block"]):
        for name in ("theta", "g", "conv_out"):
            assert jnp.abs(block[name]["kernel"]).max() > 1e-6


CLIP_OPTIONS = [
    {"block": "nonlocal", "block_axes": "space", "block_at": ("layer2.0",), "stem": "v1"},
    {"block": "disentangled_nonlocal", "block_axes": "space", "block_sub_sample": True},
    {"block": "global_context", "block_axes": "space", "dilations": (1, 2)},
]


@pytest.mark.parametrize("options", CLIP_OPTIONS)
def test_a_clip_equals_its_frames(options, x64):
    small = {"stage_sizes": (1, 1), "strides": (1, 2), "dilations": (1, 1)}
    model = nlj.create_model({**TINY, **small, **options})
    variables = draw(shapes_of(model), jnp.float64)
    clip = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 33, 41, 3)))
    apply = jax.jit(model.apply)
    logits = apply(variables, clip)
    frames = apply(variables, clip.reshape(6, 33, 41, 3)).reshape(logits.shape)
    np.testing.assert_allclose(logits, frames, rtol=0, atol=1e-12 * jnp.abs(frames).max())
    assert logits.shape == (2, 3, 33, 41, 5)


def test_clips_train():
    model = nlj.create_model(TINY)
    clip = jax.ShapeDtypeStruct((1, 3, 41, 50, 3), jnp.float32)
    chex.assert_trees_all_equal_shapes(shapes_of(model, clip), shapes_of(model))
    outputs, _ = jax.eval_shape(functools.partial(train, model), shapes_of(model), clip)
    assert [logits.shape for logits in outputs] == [(1, 3, 6, 7, 5)] * 2


def test_with_a_frozen_norm_training_changes_no_statistic():
    small = {"stage_sizes": (1, 1), "strides": (1, 1), "dilations": (1, 1), "head_kernel_size": 1}
    config = {**TINY, **small, "block_at": ("layer1.0",), "dropout": 0.0}
    model = nlj.create_model({**config, "norm": "frozen_batch_norm"})
    chex.assert_trees_all_equal_shapes(shapes_of(model), shapes_of(nlj.create_model(config)))
    variables = draw(shapes_of(model), jnp.float32)
    one, two, three = jax.random.normal(jax.random.key(0), (3, 17, 17, 3))
    step = jax.jit(functools.partial(train, model))
    outputs, updates = step(variables, jnp.stack([one, two]))
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])

    # The statistics are used as well: the logits of an image do not depend on the other image.
    others, _ = step(variables, jnp.stack([one, three]))
    for logits, other in zip(outputs, others, strict=True):
        np.testing.assert_allclose(logits[0], other[0], rtol=1e-6)
        assert not np.allclose(logits[1], other[1])


def test_networks_can_be_registered(monkeypatch):
    def build_toy(*, features: int, use_bias: bool = True):
        return nn.Dense(features, use_bias=use_bias)

    monkeypatch.setitem(models.NETWORKS, "toy", build_toy)
    toy = {"network": "toy", "features": 3}
    assert nlj.create_model(toy) == nn.Dense(3)
    assert models.model_options(toy)["use_bias"].default is True
    with pytest.raises(InputError, match="network 'toy' has no option 'feature'; did you mean"):
        nlj.create_model({**toy, "feature": 3})
    with pytest.raises(InputError, match="features is '3'; use an integer"):
        nlj.create_model({**toy, "features": "3"})

    assert models.example_input(toy) is None
    monkeypatch.setitem(models.EXAMPLE_INPUTS, "toy", jax.ShapeDtypeStruct((1, 2), jnp.float32))
    assert models.example_input(toy).shape == (1, 2)


def test_the_example_input_fits():
    example = models.example_input(TINY)
    assert (example.shape, example.dtype) == ((1, 64, 64, 3), jnp.float32)
    shapes_of(nlj.create_model(TINY), example)


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
    ("options", "message"),
    [
        ({"widht": 4}, "block 'nonlocal' has no option 'widht'; did you mean 'width'"),
        ({"mode": "gaussian"}, "has no option 'mode'; did you mean 'block_mode'"),
        ({"xyz": 1}, "has no option 'xyz'; use some of num_classes, .*block_implementation"),
        ({"block": "non_local"}, "block is 'non_local'; use one of none, nonlocal"),
        (
            {"block": "none", "block_mode": "gaussian", "block_axes": "space"},
            "block is 'none', which does not have the options block_mode, block_axes; use the "
            "config of a network without blocks .* or remove these options$",
        ),
        ({"block": "none", "block_mod": "x"}, "with block 'none' has no option 'block_mod'"),
        (
            {"block": "global_context", "block_mode": "x"},
            "not have the options block_mode; .* a network with block 'global_context', or remove",
        ),
        (
            {"block": "none", "block_at": ("layer1.0",)},
            "but block is 'none'; set block to one of nonlocal",
        ),
        ({"block_in_head": False}, "block is 'nonlocal', but is not used: .* use block='none'"),
        ({"dtype": "float16"}, "dtype is 'float16'; use 'float32' or 'bfloat16' or 'default'"),
        ({"norm": "group_norm"}, "norm is 'group_norm'; use one of batch_norm, frozen_batch_norm"),
        ({"network": "detector"}, "network is 'detector'; use one of segmentation"),
        ({"stem": "v2"}, "stem is 'v2'; use 'v1' or 'v1c'"),
        ({"width": "64"}, "width is '64'; use an integer of at least 1"),
        ({"width": True}, "width is True; use an integer"),
        ({"num_classes": 0}, "num_classes is 0; use an integer of at least 1"),
        ({"stage_sizes": 3}, "stage_sizes is 3; use a list, each entry an integer"),
        ({"stage_sizes": (3,)}, r"stage_sizes is \(3,\), but .*; use 2 or more"),
        ({"strides": (1, 2.0)}, r"strides is \(1, 2.0\); use a list"),
        (
            {"block_at": "layer1.0"},
            "block_at is 'layer1.0'; use a list, each",
        ),
        ({"head_kernel_size": 2}, "head_kernel_size is 2; use .* that is odd"),
        ({"dropout": 1.5}, "dropout is 1.5; use a number from 0 to 1"),
        ({"align_corners": 1}, "align_corners is 1; use True or False"),
        ({"block_reduction": 0.5}, "block_reduction is 0.5; use an integer"),
        ({"block_sub_sample": "x"}, "sub_sample is 'x'; use False or True or 'after' or 'before'"),
        ({"block_sub_sample": 1}, "sub_sample is 1; use False or True or 'after' or 'before'"),
        ({"block_mode": "sum"}, "block_mode is 'sum'; use 'gaussian' or .* 'concatenation'"),
        ({"block_axes": "hw"}, "block_axes is 'hw'; use 'spacetime' or 'space' or 'time'"),
        ({"block_implementation": "fast"}, "block_implementation is 'fast'; use 'auto' or 'dense'"),
        (
            {"block": "disentangled_nonlocal", "block_mode": "dot_product"},
            "block_mode is 'dot_product'; use 'gaussian' or 'embedded_gaussian'$",
        ),
        (
            {"block": "global_context", "block_pooling": "max"},
            "block_pooling is 'max'; use 'attention' or 'average'",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        nlj.create_model({"num_classes": 3, **options})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": {"num_classes": 3}, "steps": 1}, "of an experiment; use its config.model"),
        ("demo_nonlocal", "the model config is 'demo_nonlocal'; use a mapping"),
    ],
)
def test_what_is_no_model_config_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        nlj.create_model(config)


def test_all_implementations_are_allowed():
    all_names = {"auto"}.union(*ops.IMPLEMENTATIONS.values())
    assert set(get_args(NonLocalBlock.__annotations__["implementation"])) == all_names
    softmax = {"auto", *ops.IMPLEMENTATIONS["softmax_attention"]}
    allowed = DisentangledNonLocalBlock.__annotations__["implementation"]
    assert set(get_args(allowed)) == softmax


def test_the_number_of_classes_is_required():
    with pytest.raises(InputError, match="lacks num_classes"):
        nlj.create_model({})


@pytest.mark.parametrize("shape", [(33, 33, 3), (1, 33, 33, 1)])
def test_images_must_be_rgb(shape):
    with pytest.raises(InputError, match=r"use normalized RGB images \[B, H, W, 3\] or clips"):
        nlj.create_model(TINY).init(jax.random.key(0), jnp.zeros(shape))
