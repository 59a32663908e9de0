"""Padding changes no result, and images of many sizes need few programs."""

import functools

import jax
import numpy as np
import pytest

from nonlocal_jax.evaluation import Predictor, evaluator, multi_scale_inference
from nonlocal_jax.evaluation._padding import padded_side
from nonlocal_jax.models import create_model
from tests.evaluation import many_sizes
from tests.helpers import one_device

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(
    ("block", "options", "mode"),
    [
        ("nonlocal", {"block_sub_sample": True}, "whole"),
        ("dnl", {"align_corners": True}, "slide"),
        ("gc", {"block_position": "after_residual"}, "whole"),
    ],
)
def test_padding_does_not_change_probabilities(block, options, mode):
    config, variables = many_sizes.experiment(block, **options)
    slide = mode == "slide"
    config.evaluation.update(mode=mode, crop=(40, 48), stride=(24, 30), ratios=(0.5, 1.25))
    config.mesh.context = 1 if slide else 2
    image = np.random.default_rng(0).integers(0, 256, (111, 73, 3), np.uint8)
    predictor = Predictor(config, multi_scale=slide)
    apply_fn = jax.jit(functools.partial(create_model(config.model).apply, variables))
    expected = multi_scale_inference(apply_fn, image, **predictor.protocol)
    actual = predictor(variables)(image)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    assert np.std(expected) > 0.01


def test_confusion_matrices_are_equal_on_any_number_of_devices_padded_and_not():
    config, variables = many_sizes.experiment()
    source = many_sizes.examples(12, sizes=4)
    expected = many_sizes.confusion_without_padding(config, variables, source)
    assert expected.sum() == sum(np.sum(example["label"] != 255) for example in source)
    for shardings in (one_device(), None):
        summary = evaluator(config, source, shardings=shardings)(variables)
        np.testing.assert_array_equal(summary["confusion"], expected)


def test_sides_are_padded_to_few_sizes():
    sizes = {n: padded_side(n, 512, 8) for n in range(100, 2049)}
    assert sorted(set(sizes.values())) == [128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
    assert all(n <= padded < 1.5 * n for n, padded in sizes.items())
    assert padded_side(769, 769, 8) == 776  # the windows of the 769 rows
