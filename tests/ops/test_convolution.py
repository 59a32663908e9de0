"""The dilated convolution against its formula, and both of its weight gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nonlocal_jax import ops
from nonlocal_jax.backbones.resnet import conv
from nonlocal_jax.ops import convolution


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def taps(x, kernel, dilation):
    """What each tap of the kernel sees of x, zero outside of it: ``[K, L, ..., H, W, C]``."""
    pads = [(dilation * (size // 2),) * 2 for size in kernel.shape[:2]]
    padded = np.pad(x, [*[(0, 0)] * (x.ndim - 3), *pads, (0, 0)])
    height, width = x.shape[-3:-1]
    seen = [
        padded[..., dilation * i :, dilation * j :, :][..., :height, :width, :]
        for i, j in np.ndindex(kernel.shape[:2])
    ]
    return np.stack(seen).reshape(*kernel.shape[:2], *x.shape)


def expected_weight_gradient(x, kernel, dy, dilation):
    flat = taps(x, kernel, dilation).reshape(*kernel.shape[:2], -1, x.shape[-1])
    return np.einsum("klnc,nd->klcd", flat, dy.reshape(-1, dy.shape[-1]))


def assert_equal(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * float(abs(expected).max()))


SIZES = [(97, 97), (65, 129), (7, 5), (1, 3)]


@pytest.mark.parametrize("dilation", [2, 4])
@pytest.mark.parametrize("size", SIZES)
def test_phases_give_the_weight_gradient(size, dilation, x64):
    x, kernel, dy = draw(0, (2, *size, 5), (3, 3, 5, 4), (2, *size, 4))
    expected = expected_weight_gradient(x, kernel, dy, dilation)
    assert_equal(convolution._phase_weight_gradient(x, dy, kernel, dilation), expected)


@pytest.mark.parametrize("dilation", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(2, 7, 5, 3), (9, 8, 3), (2, 1, 9, 8, 3)])
@pytest.mark.parametrize("kernel_size", [(3, 3), (5, 1)])
def test_value_and_gradients(shape, dilation, kernel_size, x64):
    x, kernel, dy = draw(1, shape, (*kernel_size, 3, 4), (*shape[:-1], 4))
    # A tap that sees a pixel to the right is one to the left for the gradient of that pixel.
    turned = kernel[::-1, ::-1]
    y = np.einsum("kl...c,klcd->...d", taps(x, kernel, dilation), kernel)
    dx = np.einsum("kl...d,klcd->...c", taps(dy, kernel, dilation), turned)
    dkernel = expected_weight_gradient(x, kernel, dy, dilation)
    for transform in (lambda f: f, jax.jit):
        op = transform(lambda x, k: ops.dilated_conv(x, k, dilation))
        actual, vjp = jax.vjp(op, x, kernel)
        actual_dx, actual_dkernel = vjp(dy)
        assert_equal(actual, y)
        assert_equal(actual_dx, dx)
        assert_equal(actual_dkernel, dkernel)


def test_half_precision_stays():
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in draw(2, (2, 9, 9, 8), (3, 3, 8, 8)))
    y, vjp = jax.vjp(lambda x, k: ops.dilated_conv(x, k, 2), x, kernel)
    half = convolution._phase_weight_gradient(x, y, kernel, 2)
    assert {y.dtype, half.dtype, *(a.dtype for a in vjp(y))} == {jnp.dtype(jnp.bfloat16)}


def gradient_text(platform):
    """The lowered gradient of the ResNet's dilated convolution."""
    layer = conv(4, 3, dilation=2)
    x = jnp.zeros((1, 8, 8, 4))
    variables = layer.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda v: layer.apply(v, x).sum()))
    return gradient.trace(variables).lower(lowering_platforms=(platform,)).as_text()


def test_only_nvidia_gets_the_phases():
    # The phases of 8 x 8 with dilation 2: four maps of 4 x 4.
    texts = {platform: gradient_text(platform) for platform in ("cpu", "tpu", "cuda")}
    assert {name: "tensor<4x4x4x4xf32>" in text for name, text in texts.items()} == {
        "cpu": False,
        "tpu": False,
        "cuda": True,
    }


@pytest.mark.parametrize(
    ("x", "kernel", "dilation"),
    [
        ((4, 3), (3, 3, 3, 2), 2),
        ((1, 4, 4, 3), (3, 3, 2, 2), 2),
        ((4, 4, 3), (2, 3, 3, 2), 2),
        ((4, 4, 3), (3, 3, 3), 2),
        ((4, 4, 3), (3, 3, 3, 2), 0),
    ],
)
def test_shapes_that_do_not_fit_are_quoted(x, kernel, dilation):
    with pytest.raises(ValueError, match=r"need x \[..., H, W, C\].*got \(") as error:
        ops.dilated_conv(jnp.zeros(x), jnp.zeros(kernel), dilation)
    assert f"{x}, {kernel} and {dilation}" in str(error.value)


_SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from nonlocal_jax.ops import convolution

rng = np.random.default_rng(0)
x, dy = rng.standard_normal((8, 16, 10, 3)), rng.standard_normal((8, 16, 10, 4))
kernel = jnp.zeros((3, 3, 3, 4))
expected = convolution._weight_gradient(x, dy, kernel, 2)
mesh = jax.make_mesh((4, 2), ("data", "height"), axis_types=(AxisType.Auto,) * 2)
for spec in (P(("data", "height")), P("data", "height")):
    sharding = NamedSharding(mesh, spec)
    compiled = jax.jit(convolution._phase_weight_gradient, static_argnums=3).lower(
        jax.device_put(x, sharding), jax.device_put(dy, sharding), kernel, 2
    ).compile()
    np.testing.assert_allclose(
        compiled(jax.device_put(x, sharding), jax.device_put(dy, sharding), kernel),
        expected, rtol=1e-12, atol=1e-12,
    )
    assert "all-gather" not in compiled.as_text() and "all-to-all" not in compiled.as_text()
"""


def test_phases_of_a_sharded_batch_stay_where_they_are(on_devices):
    on_devices(_SHARDED, 8, optimize=True)
