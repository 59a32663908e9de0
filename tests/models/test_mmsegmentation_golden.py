"""Narrow networks against numbers of the real mmsegmentation, in float64.

The networks are built by the same code as the published ones. Their weights come from a formula of
name and shape (``tests/parity/formula.py``), so ``tests/golden/mmsegmentation`` contains only
outputs. ``tests/parity/write_golden.py`` wrote them.
"""

import functools
import pathlib

import formula
import jax
import jax.numpy as jnp
import narrow
import numpy as np
import optax
import pytest
import step

import nonlocal_jax as nlj
from nonlocal_jax.evaluation import multi_scale_inference, slide_inference

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "mmsegmentation"


@functools.cache
def network(row):
    """The config, the model and its float64 variables."""
    config = narrow.config(row)
    model = nlj.create_model(config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), nlj.models.example_input(config.model))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    names = {k: v.shape for k, v in nlj.convert.to_torch(zeros, config.model).items()}
    variables = nlj.convert.from_torch(formula.state_dict(names), config.model)
    return config, model, jax.tree.map(lambda a: a.astype(np.float64), variables)


def assert_close(actual, expected):
    distance = np.max(np.abs(np.asarray(actual)[narrow.KEPT] - expected)) / np.std(expected)
    assert distance < 1e-6


@pytest.mark.parametrize("row", narrow.ROWS)
@pytest.mark.usefixtures("x64")
def test_inference(row):
    config, model, variables = network(row)
    golden = np.load(GOLDEN / f"{row}.npz")
    corners = config.model.align_corners
    apply = jax.jit(functools.partial(model.apply, variables))
    images, image = jnp.asarray(formula.images(2, *narrow.SIZE)), formula.image_uint8(*narrow.SIZE)
    windows = {"crop": narrow.CROP, "stride": narrow.STRIDE}

    assert_close(apply(images), golden["logits"])
    assert_close(slide_inference(apply, images, **windows, align_corners=corners), golden["slide"])
    multi_scale = functools.partial(
        multi_scale_inference, apply, image, **narrow.SCALES, align_corners=corners
    )
    assert_close(multi_scale(), golden["whole_multi_scale"])
    assert_close(multi_scale(**windows), golden["slide_multi_scale"])


@pytest.mark.parametrize("row", narrow.TRAINED)
@pytest.mark.usefixtures("x64")
def test_training(row):
    """The first step of SGD, and what five steps change."""
    config, _, variables = network(row)
    golden = np.load(GOLDEN / f"{row}.npz")

    def assert_summaries(kind, arrays, relative, of_all):
        expected = {k: golden[f"{kind} {k}"] for k in arrays}
        assert len(arrays) == sum(k.startswith(f"{kind} ") for k in golden)
        whole = np.sqrt(sum(length**2 for length, _ in expected.values()))
        for name, array in arrays.items():
            bound = relative * expected[name][0] + of_all * whole
            np.testing.assert_allclose(
                narrow.summary(name, array), expected[name], rtol=0, atol=bound, err_msg=name
            )

    def by_name(**collections):
        return nlj.convert.to_torch(collections, config.model)

    steps = step.train(config, variables, step.make_batches(config, narrow.SIZE))
    state, metrics = next(steps)
    for name in ("decode", "aux", "loss"):
        np.testing.assert_allclose(metrics[name], golden[f"loss {name}"], rtol=1e-8)
    # The velocity after one step is the gradient with the weight decay.
    decay, velocity = config.optimizer.weight_decay, optax.tree.get(state.opt_state, "trace")
    gradients = jax.tree.map(lambda v, w: v - decay * w, velocity, variables["params"])
    assert_summaries("gradient", by_name(params=gradients), 1e-6, 1e-10)
    assert_summaries("statistics", by_name(batch_stats=state.batch_stats), 1e-8, 0)

    *_, (state, _) = steps
    changes = jax.tree.map(np.subtract, state.variables, variables)
    assert_summaries("change", by_name(**changes), 1e-5, 1e-9)
