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
import pytest
from step import make_step

import nonlocal_jax as nlj
from configs import segmentation
from nonlocal_jax.evaluation import multi_scale_inference, slide_inference

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "mmsegmentation"


@functools.cache
def network(row):
    """The config, the model and its float64 variables."""
    config = segmentation.get_config(row)
    config.model.update(narrow.CHANGES)
    config.model.dropout = 0.0
    model = nlj.create_model(config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), nlj.models.example_input(config.model))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    names = {k: v.shape for k, v in nlj.convert.to_torch(zeros, config.model).items()}
    variables = nlj.convert.from_torch(formula.state_dict(names), config.model)
    return config, model, jax.tree.map(lambda a: a.astype(np.float64), variables)


def assert_close(actual, expected):
    distance = np.max(np.abs(np.asarray(actual)[narrow.KEPT] - expected)) / np.std(expected)
    assert distance < 1e-6


@pytest.fixture(params=narrow.ROWS)
def row(request, x64):
    return request.param


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


def test_training(row):
    config, model, variables = network(row)
    golden = np.load(GOLDEN / f"{row}.npz")
    images = jnp.asarray(formula.images(2, *narrow.SIZE))
    labels = jnp.asarray(formula.labels(2, *narrow.SIZE, config.model.num_classes))

    step = make_step(model, config)
    losses, gradients, statistics = jax.device_get(step(variables, images, labels))
    for name in ("decode", "aux", "loss"):
        np.testing.assert_allclose(losses[name], golden[f"loss {name}"], rtol=1e-8)

    gradients = nlj.convert.to_torch({"params": gradients}, config.model)
    statistics = nlj.convert.to_torch({"batch_stats": statistics}, config.model)
    expected = {k: golden[f"gradient {k}"] for k in gradients}
    whole = np.sqrt(sum(length**2 for length, _ in expected.values()))
    for name, gradient in gradients.items():
        bound = 1e-6 * expected[name][0] + 1e-10 * whole
        np.testing.assert_allclose(
            narrow.summary(name, gradient), expected[name], rtol=0, atol=bound, err_msg=name
        )
    for name, value in statistics.items():
        summary = golden[f"statistics {name}"]
        np.testing.assert_allclose(
            narrow.summary(name, value), summary, rtol=0, atol=1e-8 * summary[0], err_msg=name
        )
    assert {k.partition(" ")[2] for k in golden if k[0] in "gs" and " " in k} == {
        *gradients,
        *statistics,
    }
