"""Several devices; a process of its own has them."""

_COMPARE = """
import jax, numpy as np
from configs import segmentation
from nonlocal_jax import create_model
from nonlocal_jax.train import create_optimizer, create_state, make_mesh, make_train_step, to_global

config = segmentation.get_config("demo_nonlocal")
config.model.update(width=8, head_channels=16, auxiliary_channels=8, dropout=0.1)
config.steps = 20
rng = np.random.default_rng(0)
batches = [
    {
        "image": rng.integers(0, 256, (16, 32, 32, 3), np.uint8),
        "label": rng.choice(np.array([0, 1, 2, 255], np.uint8), (16, 32, 32)),
    }
    for _ in range(20)
]
model = create_model(config.model)
tx, _ = create_optimizer(config)

def run(devices, dtype, variables):
    mesh = make_mesh(devices)
    state = create_state(model, tx, variables, mesh=mesh, dtype=dtype, **options)
    step = make_train_step(model, config, mesh)
    losses = []
    for batch in batches:
        state, metrics = step(state, to_global(batch, mesh))
        losses.append(float(metrics["loss"]))
    assert all(len(leaf.sharding.device_set) == mesh.size for leaf in jax.tree.leaves(state))
    return jax.tree.leaves(jax.device_get(state.variables)), losses

devices = jax.devices()
assert len(devices) == 8
options = {"seed": 0, "image_size": (32, 32)}
state = create_state(model, tx, mesh=make_mesh(devices[:1]), **options)
variables = jax.device_get(state.variables)
one, losses = run(devices[:1], np.float64, variables)
eight, _ = run(devices, np.float64, variables)
assert all(leaf.dtype == np.float64 for leaf in one)
difference = max(np.abs(a - b).max() for a, b in zip(one, eight, strict=True))
assert difference <= 1e-8, difference
assert losses[-1] != losses[0]

_, one = run(devices[:1], np.float32, variables)
_, eight = run(devices, np.float32, variables)
np.testing.assert_allclose(one, eight, rtol=1e-4)
"""


def test_eight_devices_train_as_one_does(on_devices):
    """Same global batches: parameters to 1e-8 in float64, losses to 1e-4 in float32."""
    on_devices(_COMPARE, 8)


_SHARE_IMAGES = """
import jax, numpy as np
from configs import segmentation
from nonlocal_jax import create_model
from nonlocal_jax.train import create_optimizer, create_state, make_mesh, make_train_step, to_global

rng = np.random.default_rng(0)
for name, height in (("demo_nonlocal", 33), ("demo_dnl", 32), ("demo_gc", 32)):
    config = segmentation.get_config(name)
    # Dilated, so that rows are needed from beyond a neighbour.
    config.model.update(width=4, head_channels=8, auxiliary_channels=8, head_kernel_size=3,
                        stage_sizes=(1, 1), strides=(1, 1), dilations=(1, 4))
    batch = {
        "image": rng.integers(0, 256, (8, height, 32, 3), np.uint8),
        "label": rng.choice(np.array([0, 1, 2, 255], np.uint8), (8, height, 32)),
    }
    model = create_model(config.model)
    tx, _ = create_optimizer(config)
    options = {"seed": 0, "image_size": (height, 32)}
    start = create_state(model, tx, mesh=make_mesh(jax.devices()[:1]), **options)
    # Blocks start as the identity, and with no gradient of what is inside: begin elsewhere.
    variables = jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.random(leaf.shape), jax.device_get(start.variables)
    )

    def step(mesh):
        state = create_state(model, tx, variables, mesh=mesh, dtype=np.float64, **options)
        state, metrics = make_train_step(model, config, mesh)(state, to_global(batch, mesh))
        return jax.device_get((state.params, state.batch_stats, metrics))

    one = jax.tree.leaves(step(make_mesh(jax.devices()[:1])))
    for context in (1, 2, 4, 8):
        for a, b in zip(one, jax.tree.leaves(step(make_mesh(context=context))), strict=True):
            error = np.max(np.abs(a - b)) / max(1, np.max(np.abs(a)))
            assert error <= 1e-10, (name, context, error)
"""


def test_devices_that_share_images_train_as_one_does(on_devices):
    """One step, parameters, statistics and metrics to 1e-10, images split 1, 2, 4 and 8 ways."""
    on_devices(_SHARE_IMAGES, 8)
