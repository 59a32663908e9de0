"""The ResNet: sizes of feature maps, stems, dilation, inserted blocks."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nonlocal_jax.backbones import ResNet
from nonlocal_jax.blocks import GlobalContextBlock, NonLocalBlock
from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import BatchNorm


def feature_sizes(height, width, **options):
    net = ResNet(width=4, stage_sizes=(1, 1, 1, 1), **options)
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    outputs, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), images)
    return [output.shape[1:3] for output in outputs]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 1024), [(128, 256), (64, 128), (64, 128), (64, 128)]),
        ((769, 769), [(193, 193), (97, 97), (97, 97), (97, 97)]),
        ((513, 1025), [(129, 257), (65, 129), (65, 129), (65, 129)]),
        ((97, 33), [(25, 9), (13, 5), (13, 5), (13, 5)]),
    ],
)
@pytest.mark.parametrize("stem", ["v1", "v1c"])
def test_output_stride_8(size, expected, stem):
    assert feature_sizes(*size, stem=stem) == expected


def test_output_stride_32():
    strided = {"strides": (1, 2, 2, 2), "dilations": (1, 1, 1, 1)}
    assert feature_sizes(128, 192, **strided)[-1] == (4, 6)


def receptive_radius(net, stage, size=129):
    """The largest distance at which an input pixel affects the center of ``stage``."""
    image = jax.random.normal(jax.random.key(0), (1, size, size, 3))
    variables = jax.eval_shape(net.init, jax.random.key(1), image)
    # Positive weights everywhere, so that no path cancels or is cut by a ReLU.
    variables = jax.tree.map(lambda a: jnp.ones(a.shape), variables)

    def center(x):
        y = net.apply(variables, x)[stage]
        return y[0, y.shape[1] // 2, y.shape[2] // 2].sum()

    gradient = jnp.abs(jax.jit(jax.grad(center))(jnp.ones_like(image))).sum((0, 2, 3))
    touched = np.flatnonzero(gradient)
    return touched.max() - touched.min() + 1


def test_dilations_are_contracted_in_the_first_block():
    """Each 3x3 convolution adds 2 * dilation * 4 pixels to the receptive field at stride 4."""

    def radius(contract, size):
        options = {"strides": (1, 1), "dilations": (1, 4), "contract_dilation": contract}
        return receptive_radius(ResNet(width=2, stage_sizes=(1, size), **options), 1)

    one, two = radius(True, 1), radius(True, 2)
    assert two - one == 2 * 4 * 4
    assert radius(False, 1) - one == 2 * (4 - 2) * 4


@pytest.mark.parametrize("position", ["after_residual", "after_conv3"])
@pytest.mark.parametrize("block", [NonLocalBlock, GlobalContextBlock])
def test_blocks_can_be_inserted(position, block):
    net = ResNet(
        width=4,
        stage_sizes=(1, 2, 1, 1),
        block=block,
        block_at=("layer2.0", "layer3.0"),
        block_position=position,
    )
    images = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    outputs, variables = jax.eval_shape(net.init_with_output, jax.random.key(1), images)
    names = set(variables["params"])
    if position == "after_residual":
        assert {n for n in names if n.endswith("_block")} == {"layer2_0_block", "layer3_0_block"}
    else:
        assert {n for n in names if "block" in variables["params"][n]} == {"layer2_0", "layer3_0"}
    plain = ResNet(width=4, stage_sizes=(1, 2, 1, 1))
    expected = jax.eval_shape(plain.init_with_output, jax.random.key(1), images)[0]
    chex.assert_trees_all_equal_shapes(outputs, expected)


def test_an_inserted_block_sits_where_it_should(x64):
    """The block is after the residual sum, or inside the branch before the sum."""

    class Double(GlobalContextBlock):
        def __call__(self, x, train=False):
            return 2 * x

    def outputs(**options):
        net = ResNet(width=2, stage_sizes=(1,), strides=(1,), dilations=(1,), **options)
        images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 17, 17, 3)))
        single = jax.ShapeDtypeStruct(images.shape, jnp.float32)
        variables = jax.eval_shape(net.init, jax.random.key(0), single)
        rng = np.random.default_rng(1)
        variables = jax.tree.map(lambda a: jnp.asarray(rng.random(a.shape)), variables)
        return net, variables, images

    net, variables, images = outputs()
    plain = net.apply(variables, images)[0]
    at = {"block": Double, "block_at": ("layer1.0",)}
    after, _, _ = outputs(**at, block_position="after_residual")
    np.testing.assert_allclose(after.apply(variables, images)[0], 2 * plain, rtol=1e-12)

    inside, _, _ = outputs(**at, block_position="after_conv3")
    doubled = jax.tree.map(jnp.asarray, variables)
    for name in ("scale", "bias"):
        doubled["params"]["layer1_0"]["bn3"][name] *= 2
    np.testing.assert_allclose(
        inside.apply(variables, images)[0], net.apply(doubled, images)[0], rtol=1e-12
    )


@pytest.mark.parametrize(
    "norm", [functools.partial(nn.GroupNorm, num_groups=2), nn.LayerNorm, nn.BatchNorm]
)
def test_the_norm_may_be_any_norm_of_flax(norm):
    net, plain = (ResNet(width=4, stage_sizes=(1, 1, 1, 1), norm=n) for n in (norm, BatchNorm))
    images = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    found, expected = (
        jax.eval_shape(functools.partial(n.init_with_output, train=True), jax.random.key(0), images)
        for n in (net, plain)
    )
    chex.assert_trees_all_equal_shapes(found[0], expected[0])
    chex.assert_trees_all_equal_shapes(found[1]["params"], expected[1]["params"])


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (64, 64, 3), r"\(64, 64, 3\); use images \[B, H, W, 3\] or clips"),
        ({"stem": "v2"}, (1, 64, 64, 3), r"stem is 'v2'; use 'v1' or 'v1c'"),
        ({"block_position": "before"}, (1, 64, 64, 3), r"block_position is 'before'; use"),
        (
            {"block_at": ("layer3.6",)},
            (1, 64, 64, 3),
            r"block_at is.*layer3.6 cannot be used; use.*layer3.5",
        ),
        ({"width": 1}, (1, 64, 64, 3), r"width is 1, but.*use 2 or more"),
        ({"strides": (1, 2)}, (1, 64, 64, 3), r"one entry per stage"),
    ],
)
def test_what_does_not_fit_is_refused(options, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(ResNet(**options).init, jax.random.key(0), jnp.zeros(shape))


def test_images_must_be_floating():
    with pytest.raises(InputError, match="images has dtype uint8; convert it to a floating type"):
        ResNet().init(jax.random.key(0), jnp.zeros((1, 64, 64, 3), jnp.uint8))
