"""Networks are exported for images of any size, on several platforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nonlocal_jax as nlj
from tests.helpers import TINY, random_variables


@pytest.mark.parametrize(
    "options",
    [
        {"block_at": ("layer1.0",), "block_position": "after_residual"},
        {"block_sub_sample": True},
        {"block": "disentangled_nonlocal", "dtype": "bfloat16"},
        {"block": "global_context", "stem": "v1", "align_corners": True},
    ],
)
def test_one_export_serves_all_sizes_and_platforms(options):
    config = {**TINY, "stage_sizes": (1, 1), "strides": (1, 2), "dilations": (1, 2), **options}
    model, variables = nlj.create_model(config), random_variables(config)
    batch, height, width = jax.export.symbolic_shape("b, h, w", constraints=["h >= 16", "w >= 16"])
    images = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.float32)
    export = jax.export.export(jax.jit(model.apply), platforms=("cpu", "tpu"))(variables, images)
    assert export.out_avals[0].shape == (batch, height, width, 3)

    for shape in ((1, 33, 48, 3), (2, 24, 17, 3)):
        images = jax.random.normal(jax.random.key(0), shape)
        found, expected = export.call(variables, images), jax.jit(model.apply)(variables, images)
        rtol = 0.02 if options.get("dtype") == "bfloat16" else 1e-5
        np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * jnp.abs(expected).max())
