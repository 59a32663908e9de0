import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import segmentation
from nonlocal_jax.errors import InputError
from nonlocal_jax.train import create_optimizer

ROW = "nonlocal_r50-d8_512x1024_40k_cityscapes"
SHAPES = {"conv/kernel": (3, 2), "conv/bias": (2,), "bn/scale": (2,), "fc/kernel": (2, 4)}


def get_config(steps=10, schedule=None, **optimizer):
    config = segmentation.get_config(ROW)
    config.steps = steps
    config.schedule.update(schedule or {})
    config.optimizer.update(optimizer)
    return config


def nested(flat):
    tree = {}
    for path, value in flat.items():
        module, name = path.split("/")
        tree.setdefault(module, {})[name] = jnp.asarray(value)
    return tree


def flat(tree):
    return {f"{m}/{n}": np.asarray(v) for m, leaves in tree.items() for n, v in leaves.items()}


def draw(rng):
    return {path: rng.normal(size=shape) for path, shape in SHAPES.items()}


def run(config):
    """Parameters before and after 10 updates with random gradients, and the gradients."""
    tx, _ = create_optimizer(config)
    rng = np.random.default_rng(0)
    start, grads = draw(rng), [draw(rng) for _ in range(10)]
    params = nested(start)
    state = tx.init(params)
    for g in grads:
        updates, state = jax.jit(tx.update)(nested(g), state, params)
        params = optax.apply_updates(params, updates)
    return start, grads, flat(params)


def sgd(start, grads, *, nesterov=False, decay=None, factor=None):
    """The formulas of the docstring; decay and factor by path."""
    decay, factor = decay or {}, factor or {}
    w, velocity = dict(start), dict.fromkeys(start, 0.0)
    for t, gradients in enumerate(grads):
        for path in w:
            rate = ((0.01 - 1e-4) * (1 - t / 10) ** 0.9 + 1e-4) * factor.get(path, 1.0)
            g = gradients[path] + decay.get(path, 5e-4) * w[path]
            velocity[path] = 0.9 * velocity[path] + g
            w[path] = w[path] - rate * (g + 0.9 * velocity[path] if nesterov else velocity[path])
    return w


def assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(actual[path], expected[path], rtol=1e-12, err_msg=path)


def test_poly_is_the_schedule_of_mmsegmentation_0x():
    _, schedule = create_optimizer(segmentation.get_config(ROW))
    t = np.array([0, 1, 4000, 20000, 39999])
    expected = (0.01 - 1e-4) * (1 - t / 40000) ** 0.9 + 1e-4
    np.testing.assert_allclose([schedule(i) for i in t], expected, rtol=1e-5)
    assert schedule(39999) > 1e-4
    assert schedule(40000) == np.float32(1e-4)


def test_step_divides_at_the_boundaries():
    options = {"kind": "step", "boundaries": (150_000, 300_000), "factor": 0.1}
    _, schedule = create_optimizer(get_config(steps=400_000, schedule=options))
    t = [0, 149_999, 150_000, 299_999, 300_000, 399_999]
    expected = [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4]
    np.testing.assert_allclose([schedule(i) for i in t], expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.array(t)), expected, rtol=1e-6)


def test_cosine_is_half_a_period():
    _, schedule = create_optimizer(get_config(steps=100, schedule={"kind": "cosine"}))
    t = np.array([0, 1, 50, 75, 99, 100])
    expected = 0.01 * (1 + np.cos(np.pi * t / 100)) / 2
    np.testing.assert_allclose([schedule(i) for i in t], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", ["poly", "step", "cosine"])
def test_warmup_is_linear_and_multiplies_the_schedule(kind):
    options = {"kind": kind, "boundaries": (60,)}
    _, without = create_optimizer(get_config(steps=100, schedule=options))
    options |= {"warmup_steps": 50, "warmup_factor": 1 / 3}
    _, schedule = create_optimizer(get_config(steps=100, schedule=options))
    for t in (0, 1, 25, 49, 50, 80):
        factor = min(1, 1 / 3 + 2 / 3 * t / 50)
        np.testing.assert_allclose(schedule(t), without(t) * factor, rtol=1e-6)


@pytest.mark.parametrize("boundaries", [(), (5, 3), (3, 3)])
def test_step_needs_increasing_boundaries(boundaries):
    with pytest.raises(
        InputError,
        match=rf"schedule\.boundaries is {re.escape(str(boundaries))}; .*use one or more",
    ):
        create_optimizer(get_config(schedule={"kind": "step", "boundaries": boundaries}))


def test_unknown_schedule():
    message = r"schedule\.kind is 'linear'; use 'poly', 'step' or 'cosine'"
    with pytest.raises(InputError, match=message):
        create_optimizer(get_config(schedule={"kind": "linear"}))


@pytest.mark.parametrize("nesterov", [False, True])
def test_decay_of_every_parameter_enters_the_momentum(x64, nesterov):
    start, grads, after = run(get_config(nesterov=nesterov))
    assert_close(after, sgd(start, grads, nesterov=nesterov))


def test_no_decay(x64):
    start, grads, after = run(get_config(no_decay=("bias$", "^bn/")))
    assert_close(after, sgd(start, grads, decay={"conv/bias": 0.0, "bn/scale": 0.0}))


def test_first_matching_learning_rate_factor(x64):
    start, grads, after = run(get_config(lr_factors=(("conv/bias", 10.0), ("conv", 5.0))))
    assert_close(after, sgd(start, grads, factor={"conv/bias": 10.0, "conv/kernel": 5.0}))


def test_clipping_comes_before_the_decay(x64):
    start, grads, after = run(get_config(clip_global_norm=3.0))
    norms = [np.sqrt(sum(np.sum(g**2) for g in gradients.values())) for gradients in grads]
    assert min(norms) < 3 < max(norms)
    clipped = [
        {path: g * min(1, 3 / norm) for path, g in gradients.items()}
        for gradients, norm in zip(grads, norms, strict=True)
    ]
    assert_close(after, sgd(start, clipped))


def test_frozen_parameters_have_no_update_no_velocity_and_no_part_in_the_norm(x64):
    config = get_config(frozen=("^conv/",), clip_global_norm=2.0, no_decay=("bn/",))
    start, grads, after = run(config)
    trained = ("bn/scale", "fc/kernel")
    for path in ("conv/kernel", "conv/bias"):
        np.testing.assert_array_equal(after[path], start[path])
    clipped = []
    for gradients in grads:
        norm = np.sqrt(sum(np.sum(gradients[path] ** 2) for path in trained))
        clipped.append({path: gradients[path] * min(1, 2 / norm) for path in trained})
    expected = sgd({path: start[path] for path in trained}, clipped, decay={"bn/scale": 0.0})
    assert_close({path: after[path] for path in trained}, expected)

    tx, _ = create_optimizer(config)
    sizes = [leaf.size for leaf in jax.tree.leaves(tx.init(nested(start)))]
    assert sum(sizes) == 2 + 8 + 1  # the velocities and the step of the schedule


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("no_decay", ("kernel", "biass")),
        ("lr_factors", (("kernel", 2.0), ("biass", 3.0))),
        ("frozen", ("biass",)),
    ],
)
def test_an_expression_that_matches_no_parameter_is_refused(option, value):
    tx, _ = create_optimizer(get_config(**{option: value}))
    params = nested(draw(np.random.default_rng(0)))
    message = f"optimizer.{option}: 'biass' matches no parameter.*'conv/bias'"
    with pytest.raises(InputError, match=message):
        tx.init(params)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(tx.init, params)


def test_options_that_are_not_used_change_nothing():
    """The updates are those of the plain chain, bit for bit."""
    config = get_config()
    start, grads, after = run(config)
    plain = optax.chain(
        optax.add_decayed_weights(5e-4),
        optax.sgd(optax.polynomial_schedule(0.01, 1e-4, 0.9, 10), momentum=0.9),
    )
    params = nested(start)
    state = plain.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(create_optimizer(config)[0].init(params))
    for g in grads:
        updates, state = jax.jit(plain.update)(nested(g), state, params)
        params = optax.apply_updates(params, updates)
    for path, value in flat(params).items():
        np.testing.assert_array_equal(after[path], value)
