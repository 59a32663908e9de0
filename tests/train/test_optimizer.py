import jax
import jax.numpy as jnp
import numpy as np

from configs import segmentation
from nonlocal_jax.train import create_optimizer


def test_poly_schedule_is_that_of_mmsegmentation_0x():
    config = segmentation.get_config("nonlocal_r50-d8_512x1024_40k_cityscapes")
    _, schedule = create_optimizer(config)
    t = np.array([0, 1, 4000, 20000, 39999])
    expected = (0.01 - 1e-4) * (1 - t / 40000) ** 0.9 + 1e-4
    np.testing.assert_allclose([schedule(i) for i in t], expected, rtol=1e-5)
    assert schedule(39999) > 1e-4


def test_sgd_is_a_hand_written_loop(x64):
    """L2 decay enters the momentum, with no parameter spared."""
    config = segmentation.get_config("nonlocal_r50-d8_512x1024_40k_cityscapes")
    config.steps = 10
    tx, schedule = create_optimizer(config)
    rng = np.random.default_rng(0)
    start = {"kernel": rng.normal(size=(3, 2)), "scale": rng.normal(size=2)}

    params = jax.tree.map(jnp.asarray, start)
    state = tx.init(params)
    w, velocity = dict(start), {"kernel": 0.0, "scale": 0.0}
    for t in range(10):
        grads = {key: rng.normal(size=value.shape) for key, value in start.items()}
        updates, state = tx.update(jax.tree.map(jnp.asarray, grads), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        learning_rate = (0.01 - 1e-4) * (1 - t / 10) ** 0.9 + 1e-4
        for key in w:
            velocity[key] = 0.9 * velocity[key] + (grads[key] + 5e-4 * w[key])
            w[key] = w[key] - learning_rate * velocity[key]
    for key in w:
        np.testing.assert_allclose(params[key], w[key], rtol=1e-7)
    assert float(schedule(10)) == 1e-4
