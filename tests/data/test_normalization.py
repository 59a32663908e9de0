import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nonlocal_jax.data import normalize

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.mark.parametrize("compile_with", [lambda f, **_: f, jax.jit], ids=["eager", "jit"])
def test_is_minus_mean_over_std(compile_with):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    out = compile_with(lambda x: normalize(x, MEAN, STD))(images)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, (images - np.array(MEAN)) / np.array(STD), atol=1e-5)


def test_keeps_float64_and_takes_the_type_asked_for():
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    expected = (images - np.array(MEAN)) / np.array(STD)
    with jax.enable_x64(True):
        for out in (
            normalize(images.astype(np.float64), MEAN, STD),
            normalize(images, MEAN, STD, dtype=jnp.float64),
        ):
            assert out.dtype == jnp.float64
            np.testing.assert_allclose(out, expected, rtol=1e-15)
        assert normalize(images, MEAN, STD).dtype == jnp.float32
