"""The loss and accuracy of segmentation, and how ignored pixels count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import segmentation
from nonlocal_jax.errors import InputError
from nonlocal_jax.tasks import get_task
from nonlocal_jax.train import loss_fn

LOGITS = 9.0 * jax.nn.one_hot(jnp.array([[[0, 1], [2, 2]]]), 3)
LABELS = jnp.array([[[0, 2], [255, 2]]], jnp.uint8)
CONFIG = {"auxiliary_weight": 0.4, "avg_non_ignore": False, "align_corners": False}


@pytest.mark.parametrize(("avg_non_ignore", "number"), [(False, 4), (True, 3)])
def test_ignored_pixels_are_counted_unless_avg_non_ignore(avg_non_ignore, number):
    right, wrong = np.log(2 + np.exp(9.0)) - 9, np.log(2 + np.exp(9.0))
    config = {**CONFIG, "avg_non_ignore": avg_non_ignore}
    _, parts = loss_fn((LOGITS, LOGITS), LABELS, config)
    np.testing.assert_allclose(parts["decode"], (2 * right + wrong) / number, rtol=1e-6)


def test_the_auxiliary_loss_is_weighted():
    loss, parts = loss_fn((LOGITS, 0 * LOGITS), LABELS, CONFIG)
    assert set(parts) == {"decode", "aux"}
    np.testing.assert_allclose(parts["aux"], 0.4 * 3 / 4 * np.log(3), rtol=1e-6)
    np.testing.assert_allclose(loss, parts["decode"] + parts["aux"], rtol=1e-6)


@pytest.mark.parametrize(("labels", "expected"), [(LABELS, 2 / 3), (LABELS | 255, 0)])
def test_accuracy_excludes_ignored_pixels(labels, expected):
    config = segmentation.get_config("demo_nonlocal")
    _, parts = get_task(config).loss((LOGITS, 0 * LOGITS), {"label": labels}, config)
    np.testing.assert_allclose(parts["accuracy"], expected, rtol=1e-6)


def test_a_config_that_is_a_dict_is_refused():
    config = segmentation.get_config("demo_fcn").to_dict()
    with pytest.raises(InputError, match=r"config is of type dict; use .* ConfigDict\(config\)"):
        get_task(config)
    get_task(ConfigDict(config))
