"""Bilinear resizing against results of PyTorch, and against its formula."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from nonlocal_jax import ops
from nonlocal_jax.errors import InputError

# torch.nn.functional.interpolate(torch.tensor([[[[0., 1, 4], [9, 16, 25]]]]), size,
# mode="bilinear", align_corners=...), float64.
SOURCE = np.array([[0.0, 1, 4], [9, 16, 25]])
PYTORCH = [
    ((3, 5), False, [[0, 0.4, 1, 2.8, 4], [4.5, 6.1, 8.5, 12.1, 14.5], [9, 11.8, 16, 21.4, 25]]),
    ((3, 5), True, [[0, 0.5, 1, 2.5, 4], [4.5, 6.5, 8.5, 11.5, 14.5], [9, 12.5, 16, 20.5, 25]]),
    ((1, 2), False, [[5.5, 13]]),
    ((1, 2), True, [[0, 4]]),
    ((4, 2), False, [[0.25, 3.25], [2.875, 8.125], [8.125, 17.875], [10.75, 22.75]]),
    ((4, 2), True, [[0, 4], [3, 11], [6, 18], [9, 25]]),
]


def reference(x, size, align_corners):
    """One output pixel at a time, from the definition of the source position."""

    def position(i, old, new):
        if align_corners:
            return i * (old - 1) / (new - 1) if new > 1 else 0.0
        return max((i + 0.5) * old / new - 0.5, 0.0)

    out = np.zeros((*size, x.shape[-1]))
    for i in range(size[0]):
        for j in range(size[1]):
            y, x_ = position(i, x.shape[0], size[0]), position(j, x.shape[1], size[1])
            y0, x0 = int(y), int(x_)
            y1, x1 = min(y0 + 1, x.shape[0] - 1), min(x0 + 1, x.shape[1] - 1)
            a, b = y - y0, x_ - x0
            out[i, j] = (1 - a) * ((1 - b) * x[y0, x0] + b * x[y0, x1]) + a * (
                (1 - b) * x[y1, x0] + b * x[y1, x1]
            )
    return out


@pytest.mark.parametrize(("size", "align_corners", "expected"), PYTORCH)
def test_pytorch_numbers(x64, size, align_corners, expected):
    actual = ops.resize(jnp.asarray(SOURCE)[..., None], size, align_corners=align_corners)
    np.testing.assert_allclose(actual[..., 0], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(5, 7), (13, 11), (9, 9), (3, 4), (1, 1), (18, 2), (9, 10)])
def test_formula(x64, size, align_corners):
    x = np.random.default_rng(0).standard_normal((2, 9, 10, 3))
    actual = ops.resize(jnp.asarray(x), size, align_corners=align_corners)
    for image, result in zip(x, actual, strict=True):
        expected = reference(image, size, align_corners)
        np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-12)


def test_same_size_is_the_identity():
    x = jnp.ones((1, 4, 5, 2))
    assert ops.resize(x, (4, 5)) is x


def test_leading_dimensions_and_types():
    x = jnp.ones((2, 3, 4, 5, 1), jnp.bfloat16)
    y = ops.resize(x, (8, 7))
    chex.assert_shape(y, (2, 3, 8, 7, 1))
    assert y.dtype == jnp.bfloat16


def test_gradient_is_the_transpose(x64):
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((4, 5, 1)), rng.standard_normal((7, 3, 1))
    y, vjp = jax.vjp(lambda x: ops.resize(x, (7, 3)), jnp.asarray(x))
    np.testing.assert_allclose(jnp.sum(y * dy), jnp.sum(vjp(jnp.asarray(dy))[0] * x), rtol=1e-12)


@pytest.mark.parametrize("size", [(0, 3), (3,)])
def test_bad_size_is_quoted(size):
    with pytest.raises(InputError, match="size of two positive integers"):
        ops.resize(jnp.zeros((4, 4, 1)), size)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, bool])
def test_input_must_be_floating_point(dtype):
    with pytest.raises(InputError, match=f"x has dtype {jnp.dtype(dtype)}; convert it to a float"):
        ops.resize(jnp.zeros((4, 4, 1), dtype), (8, 8))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("network_stride", [(8, 8), (1, 3)])
def test_one_export_for_all_sizes_and_platforms(network_stride, align_corners):
    """As in a network: logits of a smaller size are resized to the size of the image."""

    def resize(image):
        x = image[:, :: network_stride[0], :: network_stride[1]]
        return ops.resize(x, image.shape[1:3], align_corners=align_corners)

    shape = export.symbolic_shape("b, h, w, 2")
    exported = export.export(jax.jit(resize), platforms=("cpu", "tpu"))(
        jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    rng = np.random.default_rng(0)
    for size in ((8, 8), (33, 17), (1, 1), (512, 769)):
        image = jnp.asarray(rng.standard_normal((1, *size, 2)), jnp.float32)
        np.testing.assert_allclose(exported.call(image), resize(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
def test_input_and_output_size_may_be_different_symbols(align_corners, x64):
    def resize(x, like):
        return ops.resize(x, like.shape, align_corners=align_corners)

    scope = export.SymbolicScope()
    shapes = [export.symbolic_shape(names, scope=scope) for names in ("h, w, 1", "p, q")]
    exported = export.export(jax.jit(resize), platforms=("cpu", "tpu"))(
        *(jax.ShapeDtypeStruct(shape, jnp.float64) for shape in shapes)
    )
    for size, expected in ((p[0], p[2]) for p in PYTORCH if p[1] == align_corners):
        actual = exported.call(jnp.asarray(SOURCE)[..., None], jnp.zeros(size))
        np.testing.assert_allclose(actual[..., 0], expected, rtol=1e-12, atol=1e-14)
