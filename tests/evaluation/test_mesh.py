"""Inference with several devices to an image; a process of its own has them."""

_COMPARE = """
import jax, numpy as np
from configs import segmentation
from nonlocal_jax import create_model, evaluation

config = segmentation.get_config("demo_nonlocal")
config.model.update(width=4, head_channels=8, auxiliary_channels=8, block_implementation="ring")
model = create_model(config.model)
rng = np.random.default_rng(0)
images = rng.standard_normal((1, 41, 30, 3))  # rows do not divide
variables = jax.tree.map(
    lambda leaf: 0.5 + rng.random(leaf.shape), model.init(jax.random.key(0), images)
)
one = evaluation.inference_fn(model, variables)(images)
config.mesh.context = 4
mesh = evaluation.inference_mesh(config)
shared = evaluation.inference_fn(model, variables, mesh)(images)
assert len(shared.sharding.device_set) == 4
np.testing.assert_allclose(shared, one, rtol=0, atol=1e-10 * np.abs(one).max())

image = rng.integers(0, 256, (41, 30, 3), np.uint8)
protocol = {"base_size": (30, 41), "crop": (24, 24), "stride": (16, 16)}
expected = evaluation.predict(evaluation.inference_fn(model, variables), image, protocol)
actual = evaluation.predict(evaluation.inference_fn(model, variables, mesh), image, protocol)
np.testing.assert_array_equal(actual, expected)

config.mesh.context = 5  # more than there are
assert evaluation.inference_mesh(config).size == 4
"""


def test_devices_that_share_an_image_infer_as_one_does(on_devices):
    on_devices(_COMPARE, 4)
