"""The convolution against its formula, and both weight gradients of the dilated one."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from nonlocal_jax import ops
from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import Conv
from nonlocal_jax.ops import convolution


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def taps(x, window, strides, dilations):
    """The input of each tap of a kernel, with zeros outside of x: ``[*K, B, *S', C]``."""
    pads = [(d * (k // 2),) * 2 for d, k in zip(dilations, window, strict=True)]
    padded = np.pad(x, [(0, 0), *pads, (0, 0)])
    seen = []
    for tap in np.ndindex(window):
        slices = [
            slice(d * i, d * i + n, s)
            for d, i, n, s in zip(dilations, tap, x.shape[1:-1], strides, strict=True)
        ]
        seen.append(padded[:, *slices, :])
    return np.stack(seen).reshape(*window, *seen[0].shape)


def expected_weight_gradient(x, kernel, dy, dilations):
    window = kernel.shape[:-2]
    ones = (1,) * len(window)
    flat = taps(x, window, ones, dilations).reshape(*window, -1, x.shape[-1])
    return np.einsum("...nc,nd->...cd", flat, dy.reshape(-1, dy.shape[-1]))


def assert_equal(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * float(abs(expected).max()))


@pytest.mark.parametrize("dilation", [2, 4])
@pytest.mark.parametrize("size", [(97, 97), (65, 129), (7, 5), (1, 3)])
def test_phases_give_the_weight_gradient(size, dilation, x64):
    x, kernel, dy = draw(0, (2, *size, 5), (3, 3, 5, 4), (2, *size, 4))
    dilations = (dilation, dilation)
    expected = expected_weight_gradient(x, kernel, dy, dilations)
    assert_equal(convolution._phase_weight_gradient(x, dy, kernel, dilations), expected)


def test_phases_of_a_clip_keep_its_frames(x64):
    x, kernel, dy = draw(0, (2, 3, 7, 5, 4), (1, 3, 3, 4, 2), (2, 3, 7, 5, 2))
    assert convolution._phases(x, (1, 2, 2)).shape == (2 * 4, 3, 4, 3, 4)
    expected = expected_weight_gradient(x, kernel, dy, (1, 2, 2))
    assert_equal(convolution._phase_weight_gradient(x, dy, kernel, (1, 2, 2)), expected)


@pytest.mark.parametrize(
    ("shape", "window", "strides", "dilations"),
    [
        ((2, 9, 3), (3,), (1,), (2,)),
        ((2, 9, 3), (5,), (2,), (1,)),
        *itertools.product([(2, 7, 5, 3)], [(3, 3), (5, 1)], [(1, 1), (2, 2)], [(1, 1), (3, 3)]),
        ((2, 7, 9, 3), (3, 3), (2, 1), (1, 4)),
        ((2, 4, 7, 5, 3), (3, 1, 3), (1, 1, 1), (2, 1, 2)),
        ((2, 4, 7, 5, 3), (3, 3, 3), (1, 2, 2), (1, 1, 1)),
        # frame by frame, and row by row
        ((2, 4, 7, 5, 3), (3, 3), (1, 1), (2, 2)),
        ((2, 4, 7, 5, 3), (3, 3), (2, 2), (1, 1)),
        ((2, 4, 5, 3), (3,), (1,), (2,)),
    ],
)
def test_value_and_gradients(shape, window, strides, dilations, x64):
    x, kernel = draw(1, shape, (*window, 3, 4))
    full = [(1,) * (len(shape) - 2 - len(window)) + n for n in (window, strides, dilations)]

    def formula(x, kernel):
        seen = taps(x, *full).reshape(*window, -1, shape[-1])
        return np.einsum("anc,acd->nd", seen.reshape(-1, *seen.shape[-2:]), kernel)

    op = jax.jit(lambda x, k: ops.conv(x, k, stride=strides, dilation=dilations))
    y, vjp = jax.vjp(op, x, kernel)
    flat = kernel.reshape(-1, 3, 4)
    assert y.shape == (*taps(x, *full).shape[len(full[0]) : -1], 4)
    assert_equal(y.reshape(-1, 4), formula(x, flat))
    # The convolution is linear in both arguments, so <dy, conv(dx, k)> = <vjp(dy), dx>.
    dy, dx, dkernel = draw(2, y.shape, x.shape, kernel.shape)
    found_dx, found_dkernel = vjp(dy)
    rows = dy.reshape(-1, 4)
    scale = np.linalg.norm(dy) * np.linalg.norm(x) * np.linalg.norm(kernel)
    for found, expected in (
        (np.sum(found_dx * dx), np.sum(rows * formula(dx, flat))),
        (np.sum(found_dkernel * dkernel), np.sum(rows * formula(x, dkernel.reshape(flat.shape)))),
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * scale)


def test_one_number_serves_all_axes(x64):
    x, kernel = draw(3, (1, 9, 9, 3), (3, 3, 3, 2))
    for name in ("stride", "dilation"):
        one, pair = ops.conv(x, kernel, **{name: 2}), ops.conv(x, kernel, **{name: (2, 2)})
        np.testing.assert_array_equal(one, pair)


def test_half_precision_stays():
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in draw(2, (2, 9, 9, 8), (3, 3, 8, 8)))
    y, vjp = jax.vjp(lambda x, k: ops.conv(x, k, dilation=2), x, kernel)
    half = convolution._phase_weight_gradient(x, y, kernel, (2, 2))
    assert {y.dtype, half.dtype, *(a.dtype for a in vjp(y))} == {jnp.dtype(jnp.bfloat16)}


def gradient_text(platform, x):
    """The lowered gradient of a dilated convolution of the ResNet."""
    layer = Conv(4, dilation=2)
    variables = layer.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda v: layer.apply(v, x).sum()))
    return gradient.trace(variables).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("shape", "phases"),
    [((1, 8, 8, 4), "tensor<4x4x4x4xf32>"), ((1, 3, 8, 8, 4), "tensor<12x4x4x4xf32>")],
)
def test_only_nvidia_gets_the_phases(shape, phases):
    # The phases of 8 x 8 with dilation 2: four maps of 4 x 4. Frames are folded into the batch.
    texts = {name: gradient_text(name, jnp.zeros(shape)) for name in ("cpu", "tpu", "cuda")}
    assert {name for name, text in texts.items() if phases in text} == {"cuda"}


@pytest.mark.parametrize("dilation", [1, 2])
def test_every_product_of_value_and_gradients_has_the_precision(dilation):
    x, kernel = (jnp.zeros(shape, jnp.float32) for shape in ((1, 8, 8, 3), (3, 3, 3, 2)))

    def precisions(**options):
        gradients = jax.jit(lambda *args: jax.vjp(conv, *args)[1](jnp.ones((1, 8, 8, 2))))
        conv = functools.partial(ops.conv, dilation=dilation, **options)
        lowered = gradients.trace(x, kernel).lower(lowering_platforms=("cpu", "tpu", "cuda"))
        lines = [line for line in lowered.as_text().splitlines() if ".convolution(" in line]
        # The value and two gradients. If dilated, another weight gradient for NVIDIA GPUs.
        assert len(lines) >= (4 if dilation > 1 else 3)
        return {tuple(re.findall(r"precision (\w+)>", line)) for line in lines}

    assert precisions(precision=jax.lax.Precision.HIGHEST) == {("HIGHEST", "HIGHEST")}
    assert precisions(precision=("high", "default")) == {("HIGH", "DEFAULT")}
    assert precisions() == {("DEFAULT", "DEFAULT")}


def test_second_derivatives_of_a_dilated_convolution(x64):
    """In reverse mode over reverse mode, and in forward mode over reverse mode."""
    x, kernel, dx, dk = map(jnp.asarray, draw(5, *((1, 5, 6, 2), (3, 3, 2, 2)) * 2))

    def total(conv, x, kernel):
        return jnp.sum(jnp.sin(conv(x, kernel)))

    def products(conv):
        """Products of the Hessian with (dx, dk)."""
        gradient = jax.grad(functools.partial(total, conv), argnums=(0, 1))
        _, forward = jax.jvp(gradient, (x, kernel), (dx, dk))
        _, pull = jax.vjp(gradient, x, kernel)
        return forward, pull((dx, dk))

    forward, reverse = products(functools.partial(ops.conv, dilation=2))
    expected, _ = products(lambda x, k: convolution._convolve(x, k, (2, 2), None))
    for found in (forward, reverse):
        jax.tree.map(assert_equal, found, expected)


def test_first_derivatives_of_a_dilated_convolution_are_in_reverse_mode():
    x, kernel = jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2, 2))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda kernel: ops.conv(x, kernel, dilation=2), (kernel,), (kernel,))


@pytest.mark.parametrize(("name", "dtype"), [("x", "uint8"), ("kernel", "int32")])
def test_arrays_must_be_floating(name, dtype):
    arrays = {"x": jnp.ones((1, 5, 5, 2)), "kernel": jnp.ones((3, 3, 2, 2))}
    arrays[name] = arrays[name].astype(dtype)
    message = f"{name} has dtype {dtype}; convert it to a floating type, such as float32"
    with pytest.raises(InputError, match=message):
        ops.conv(**arrays)


@pytest.mark.parametrize(
    ("x", "kernel", "options"),
    [
        ((4, 4, 3), (3, 3, 3, 2), {"dilation": 2}),  # no batch
        ((1, 4, 4, 3), (3, 3, 2, 2), {"dilation": 2}),
        ((1, 4, 4, 3), (2, 3, 3, 2), {"dilation": 2}),
        ((1, 4, 4, 3), (3, 2), {}),
        ((1, 4, 4, 3), (3, 3, 3, 2), {"dilation": 0}),
        ((1, 4, 4, 3), (3, 3, 3, 2), {"stride": (1, 1, 2)}),
    ],
)
def test_shapes_that_do_not_fit_are_quoted(x, kernel, options):
    with pytest.raises(ValueError, match=r"use x \[B, \*S, C\]") as error:
        ops.conv(jnp.zeros(x), jnp.zeros(kernel), **options)
    assert f"x has shape {x}, kernel has shape {kernel}" in str(error.value)
    for name, value in options.items():
        assert f"{name} is {value}" in str(error.value)


@pytest.mark.parametrize(
    ("size", "window", "dilations", "spec"),
    [
        ((8, 16, 10), (3, 3), (2, 2), P(("data", "context"))),
        ((8, 16, 10), (3, 3), (2, 2), P("data", "context")),
        ((8, 4, 8, 6), (1, 3, 3), (1, 2, 2), P("data", "context")),
    ],
)
def test_phases_of_sharded_images_and_frames_are_not_gathered(size, window, dilations, spec, x64):
    x, dy = draw(4, (*size, 3), (*size, 4))
    kernel = jnp.zeros((*window, 3, 4), jnp.float64)
    mesh = jax.make_mesh((4, 2), ("data", "context"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, spec)
    gradient = jax.jit(
        convolution._phase_weight_gradient,
        static_argnums=3,
        in_shardings=(sharding, sharding, NamedSharding(mesh, P())),
    )
    compiled = gradient.lower(x, dy, kernel, dilations).compile()
    assert_equal(compiled(x, dy, kernel), expected_weight_gradient(x, kernel, dy, dilations))
    assert "all-gather" not in compiled.as_text()
    assert "all-to-all" not in compiled.as_text()
