"""The convolution layers."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import BatchNorm, Conv, ConvNorm, initializers


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "dtype"),
    [(7, 2, 1, None), (3, 1, 2, None), (3, 1, 1, jnp.bfloat16)],
)
def test_equal_to_the_convolution_of_flax(size, stride, dilation, dtype):
    pad = dilation * (size // 2)
    theirs = nn.Conv(
        4,
        (size, size),
        strides=stride,
        kernel_dilation=dilation,
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=initializers.kaiming_fan_out,
        dtype=dtype,
    )
    x = jax.random.normal(jax.random.key(0), (2, 9, 12, 3))
    ours = Conv(4, size, stride, dilation, dtype)
    (y, variables), expected = (m.init_with_output(jax.random.key(1), x) for m in (ours, theirs))
    chex.assert_trees_all_equal((y, variables), expected)


@pytest.mark.parametrize("options", [{"kernel_size": 1}, {"stride": 2}, {"dilation": 2}])
def test_clips_are_convolved_frame_by_frame(options, x64):
    clip = jax.random.normal(jax.random.key(0), (2, 3, 9, 7, 4), jnp.float64)
    conv = Conv(5, **options)
    single = jnp.zeros(clip.shape, jnp.float32)
    variables = conv.init(jax.random.key(1), single)
    chex.assert_trees_all_equal(variables, conv.init(jax.random.key(1), single[:, 0]))
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
    frames = jnp.stack([conv.apply(variables, clip[:, t]) for t in range(3)], 1)
    np.testing.assert_allclose(conv.apply(variables, clip), frames, rtol=0, atol=1e-12)


def test_a_kernel_may_have_any_number_of_axes():
    clip = jnp.ones((1, 4, 8, 8, 3))
    conv = Conv(2, (3, 1, 1), stride=(2, 1, 1))
    y, variables = conv.init_with_output(jax.random.key(0), clip)
    assert variables["params"]["kernel"].shape == (3, 1, 1, 3, 2)
    assert y.shape == (1, 2, 8, 8, 2)


@pytest.mark.parametrize(
    "norm", [BatchNorm, functools.partial(nn.GroupNorm, num_groups=2), nn.LayerNorm]
)
def test_conv_norm_takes_any_norm(norm):
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
    layer = ConvNorm(4, norm=norm)
    variables = layer.init(jax.random.key(1), x)
    assert set(variables["params"]) == {"conv", "bn"}
    y = layer.apply(variables, x)
    assert y.shape == (2, 5, 5, 4)
    assert y.min() == 0 < y.max()


def test_train_may_be_given_by_position():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
    layer = ConvNorm(4)
    variables = layer.init(jax.random.key(1), x)
    found, expected = (
        layer.apply(variables, x, *args, **options, mutable=["batch_stats"])
        for args, options in (((True,), {}), ((), {"train": True}))
    )
    chex.assert_trees_all_equal(found, expected)


def test_images_must_be_floating():
    with pytest.raises(InputError, match="x has dtype uint8; convert it to a floating type"):
        Conv(4).init(jax.random.key(0), jnp.zeros((1, 5, 5, 3), jnp.uint8))
