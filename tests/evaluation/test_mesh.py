"""Inference and evaluation on several devices."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import segmentation
from nonlocal_jax import evaluation
from nonlocal_jax.errors import InputError
from nonlocal_jax.evaluation._devices import local_shardings
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


@pytest.mark.usefixtures("x64")
def test_devices_that_share_an_image_give_the_result_of_one_device(config, variables):
    # 4 does not divide the 25 rows of a window.
    config.evaluation.update(mode="slide", crop=(25, 24), stride=(16, 16), base_size=(30, 41))
    image = np.random.default_rng(0).integers(0, 256, (41, 30, 3), np.uint8)
    expected = evaluation.Predictor(config)(variables)(image)
    config.mesh.context = 4
    actual = evaluation.Predictor(config)(variables)(image)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)


def test_a_predictor_uses_at_most_the_devices_that_there_are():
    assert local_shardings(9).mesh.shape == {"data": 1, "fsdp": 1, "context": 8}
    assert local_shardings(3).mesh.shape == {"data": 2, "fsdp": 1, "context": 3}
    assert local_shardings(3, groups=1).mesh.shape == {"data": 1, "fsdp": 1, "context": 3}


def test_images_and_logits_are_split_over_the_devices_that_share_an_image(config):
    config.evaluation.base_size = (64, 128)
    predictor = evaluation.Predictor(config, shardings=local_shardings(4))
    compiled = predictor.trace((64, 128)).lower().compile()
    _, images, _ = compiled.input_shardings[0]
    assert images.spec == PartitionSpec(("data", "fsdp"), "context")
    # A quarter of the logits of 128x128 pixels at stride 4, 3 classes in float32.
    assert compiled.memory_analysis().output_size_in_bytes == 32 * 32 * 3 * 4 // 4


def test_a_mesh_is_no_shardings(config):
    with pytest.raises(InputError, match=r"shardings is of type Mesh; use .*Shardings"):
        evaluation.evaluator(config, [], shardings=make_mesh())


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
