"""The loss of classification, and the config fields of the task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import video
from nonlocal_jax.errors import InputError
from nonlocal_jax.tasks import get_task
from nonlocal_jax.train import loss_fn

SOFTMAX, SIGMOID = {"kind": "softmax"}, {"kind": "sigmoid"}
LOGITS = np.random.default_rng(0).standard_normal((4, 3)) * 3
CLASSES = np.array([0, 2, 1, 2], np.int32)
MANY = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])


@pytest.mark.usefixtures("x64")
def test_the_losses_are_their_formulas():
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    expected = -np.log(probabilities[range(4), CLASSES]).mean()
    loss, parts = loss_fn(jnp.asarray(LOGITS), CLASSES, SOFTMAX)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert parts == {"cross_entropy": loss}

    chance = 1 / (1 + np.exp(-LOGITS))
    expected = -np.where(MANY == 1, np.log(chance), np.log(1 - chance)).mean()
    for labels in (MANY, MANY.astype(np.float32), MANY == 1):
        loss, parts = loss_fn(jnp.asarray(LOGITS), labels, SIGMOID)
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        assert parts == {"binary_cross_entropy": loss}


@pytest.mark.parametrize(("labels", "config"), [(CLASSES, SOFTMAX), (MANY, SIGMOID)])
def test_half_precision_logits_of_any_size_are_finite(labels, config):
    logits = jnp.asarray([[300.0, -300.0, 0.0]] * 4, jnp.bfloat16)
    loss, gradient = jax.value_and_grad(lambda z: loss_fn(z, labels, config)[0])(logits)
    assert loss.dtype == jnp.float32
    assert 50 < loss < 500
    assert np.all(np.isfinite(gradient.astype(jnp.float32)))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_class_out_of_range_makes_the_loss_nan(wrong):
    loss, _ = loss_fn(jnp.asarray(LOGITS), CLASSES * 0 + wrong, SOFTMAX)
    assert np.isnan(loss)


@pytest.mark.parametrize(
    ("logits", "labels", "config", "message"),
    [
        (LOGITS, MANY, SOFTMAX, r"\(4, 3\), but loss.kind='softmax' needs \[B\], here \(4,\)"),
        (LOGITS, CLASSES, SIGMOID, r"\(4,\), but loss.kind='sigmoid' needs \[B, classes\]"),
        (
            LOGITS,
            CLASSES * 1.0,
            SOFTMAX,
            "labels are float32, but .* needs integers",
        ),
        (LOGITS[:, None], CLASSES, SOFTMAX, r"logits have the shape \(4, 1, 3\); use"),
        (LOGITS, CLASSES, {"kind": "hinge"}, "loss.kind is 'hinge'; use 'softmax' or 'sigmoid'"),
        (LOGITS, CLASSES, {"margin": 1}, "has the fields margin; use config.loss of"),
    ],
)
def test_what_does_not_fit_is_refused(logits, labels, config, message):
    with pytest.raises(InputError, match=message):
        loss_fn(logits, labels, config)


@pytest.mark.parametrize("name", ["nl_i3d_r50_5block_32f", "charades_nl_i3d_r101_128f"])
def test_the_batch_of_an_experiment(name):
    config = video.get_config(name)
    task, sigmoid = get_task(config), name.startswith("charades")
    batch = task.batch(config)
    number, size = config.data.batch_size, config.data.crop
    assert batch["clip"].shape == (number, config.data.frames, size, size, 3)
    assert batch["label"].shape == ((number, 157) if sigmoid else (number,))
    assert task.headline(config) == ("map_1clip" if sigmoid else "top1_1clip")
    loss, parts = jax.eval_shape(
        lambda batch: task.loss(jnp.ones((number, config.model.num_classes)), batch, config), batch
    )
    assert loss.shape == ()
    assert set(parts) == (set() if sigmoid else {"accuracy"})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("evaluation.window", (7, 7), r"use \(\) or three integers of at least 0"),
        ("data.crop_area", (0.5, 0.2), r"use \(\) or two positive numbers of at most 1"),
        ("evaluation.crops", 2, "use 1, 3 or 10"),
        ("evaluation.crops", True, "use 1, 3 or 10"),
        ("evaluation.crops", 3.0, "use 1, 3 or 10"),
        ("evaluation.starts", "random", "use 'wrap', 'even' or 'segments'"),
        ("evaluation.starts", "segments", "segments has one clip, but evaluation.clips=10; use 1"),
        ("evaluation.crop", 257, "crop=257 is larger than evaluation.short_side=256; use at most"),
        ("data.crop", 257, "data.crop=257 is larger than frames with a shorter side of 256"),
        ("train.remat", 1, "use 'none', 'blocks' or 'full'"),
        ("train.precise_batch_norm", -1, "use an integer of at least 0"),
    ],
)
def test_values_that_are_not_allowed(field, value, message):
    config = video.get_config("c2d_r50_baseline_32f")
    for window in ((), (0, 7, 7), [4, 7, 7]):
        config.evaluation.window = window
        get_task(config)
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=message):
        get_task(config)


@pytest.mark.parametrize("field", ["crop_scales", "crop_area"])
def test_a_crop_that_is_resized_may_be_larger_than_the_frames(field):
    config = video.get_config("c2d_r50_baseline_32f")
    config.data.crop = 512
    config.data[field] = (0.5, 1.0)
    get_task(config)
