"""Inference and evaluation on several devices."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import segmentation
from nonlocal_jax import create_model, evaluation
from nonlocal_jax.sharding import Shardings, make_mesh
from tests.helpers import random_variables


@pytest.fixture
def config():
    config = segmentation.get_config("demo_nonlocal")
    config.model.update(width=4, head_channels=8, auxiliary_channels=8)
    return config


@pytest.fixture
def variables(config):
    return jax.tree.map(np.float64, random_variables(config.model))


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.usefixtures("x64")
def test_devices_that_share_an_image_give_the_logits_of_one_device(config, variables):
    model = create_model(config.model)
    images = np.random.default_rng(0).standard_normal((1, 41, 30, 3))  # 4 does not divide 41
    expected = evaluation.inference_fn(model)(variables)(images)
    shardings = Shardings(make_mesh(jax.devices()[:4], context=4))
    actual = evaluation.inference_fn(model, shardings)(variables)(images)
    assert len(actual.sharding.device_set) == 4
    assert_close(actual, expected)


@pytest.mark.usefixtures("x64")
def test_windows_on_devices_that_share_an_image(config, variables):
    config.evaluation.update(mode="slide", crop=(24, 24), stride=(16, 16), base_size=(30, 41))
    image = np.random.default_rng(0).integers(0, 256, (41, 30, 3), np.uint8)
    expected = evaluation.Predictor(config)(variables)(image)
    config.mesh.context = 4
    assert_close(evaluation.Predictor(config)(variables)(image), expected)


def test_more_devices_than_there_are(config, variables):
    config.mesh.context = 9
    image = np.zeros((64, 64, 3), np.uint8)
    probabilities = evaluation.Predictor(config)(variables)(image)
    assert len(probabilities.sharding.device_set) == 8


@pytest.mark.usefixtures("x64")
def test_a_sharded_state_is_evaluated_without_gathering_it(config, variables):
    source = [
        {
            "image": np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8),
            "label": np.random.default_rng(i).integers(0, 3, (64, 64), np.uint8),
            "id": i,
        }
        for i in range(2)
    ]
    expected = evaluation.evaluator(config, source)(variables)
    rules = ((r"layer.*conv\d/kernel$", PartitionSpec(None, None, None, "data")),)
    shardings = Shardings(make_mesh(context=2), rules)
    sharded = shardings.place(variables)
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(sharded))
    actual = evaluation.evaluator(config, source, shardings=shardings)(sharded)
    for key in ("miou", "iou", "accuracy"):
        np.testing.assert_array_equal(actual[key], expected[key])
