"""The inference protocols, against the published rules and against NumPy."""

import pathlib
import re
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import segmentation
from nonlocal_jax.data import keep_ratio_size, normalize, resize_image
from nonlocal_jax.errors import InputError
from nonlocal_jax.evaluation import Predictor, _programs, _windows, inference, predictor
from nonlocal_jax.models import create_model
from nonlocal_jax.ops import resize
from tests.helpers import random_variables

MEAN, STD = np.array(inference.MEAN), np.array(inference.STD)


def starts_seen(size, crop, stride):
    """The windows of slide_inference. They are read off an image of its own coordinates."""
    y, x = np.meshgrid(*map(np.arange, size), indexing="ij")
    image = np.stack([y, x, np.zeros_like(x)], -1)[None].astype(np.float32)
    seen = []

    def apply_fn(window):
        seen.append((int(window[0, 0, 0, 0]), int(window[0, 0, 0, 1]), *window.shape[1:3]))
        return window

    merged = inference.slide_inference(apply_fn, image, crop, stride)
    np.testing.assert_allclose(merged, image, rtol=1e-6)
    return seen


def test_the_windows_of_the_published_769_rows():
    seen = starts_seen((1025, 2049), (769, 769), (513, 513))
    assert seen == [(y, x, 769, 769) for y in (0, 256) for x in (0, 513, 1026, 1280)]


@pytest.mark.parametrize(
    ("size", "windows"),
    [
        ((8, 8), [(0, 0, 8, 8)]),  # exactly the crop
        ((5, 6), [(0, 0, 5, 6)]),  # smaller both ways
        ((5, 9), [(0, 0, 5, 8), (0, 1, 5, 8)]),  # smaller one way
        ((8, 13), [(0, 0, 8, 8), (0, 5, 8, 8)]),  # one stride
        ((8, 14), [(0, 0, 8, 8), (0, 5, 8, 8), (0, 6, 8, 8)]),  # one pixel more
    ],
)
def test_windows_shift_back_and_shrink(size, windows):
    assert starts_seen(size, (8, 8), (5, 5)) == windows


def test_overlaps_are_averaged():
    number = iter([1.0, 2.0])
    merged = inference.slide_inference(
        lambda window: jnp.full((*window.shape[:3], 1), next(number)),
        np.zeros((1, 4, 6, 3), np.float32),
        crop=(4, 4),
        stride=(4, 4),
    )
    np.testing.assert_array_equal(merged[0, 0, :, 0], [1, 1, 1.5, 1.5, 2, 2])


@pytest.mark.parametrize("align_corners", [False, True])
def test_logits_of_windows_are_resized_to_the_window(align_corners):
    images = np.random.default_rng(0).standard_normal((2, 5, 7, 3)).astype(np.float32)

    def coarse(window):
        return window[:, ::2, ::2]

    merged = inference.slide_inference(coarse, images, (5, 7), (5, 7), align_corners)
    resized = resize(coarse(images), (5, 7), align_corners=align_corners)
    np.testing.assert_allclose(merged, resized, rtol=1e-6)


def test_slide_inference_compiles_once_and_inside_jit():
    traced = []

    @jax.jit
    def apply_fn(window):
        traced.append(window.shape)
        return jnp.tanh(window)

    images = np.random.default_rng(0).standard_normal((1, 20, 31, 3)).astype(np.float32)
    merged = inference.slide_inference(apply_fn, images, (8, 8), (5, 5))
    assert traced == [(1, 8, 8, 3)]
    np.testing.assert_allclose(merged, np.tanh(images), rtol=1e-5)
    jitted = jax.jit(lambda x: inference.slide_inference(apply_fn, x, (8, 8), (5, 5)))(images)
    np.testing.assert_allclose(jitted, merged, rtol=1e-6)


def test_half_precision_logits_are_summed_in_float32():
    merged = inference.slide_inference(
        lambda x: x.astype(jnp.bfloat16), np.ones((1, 8, 8, 3), np.float32), (5, 5), (3, 3)
    )
    assert merged.dtype == jnp.float32


@pytest.mark.parametrize("stride", [(9, 8), (8, 0)])
def test_windows_that_do_not_cover_the_image_are_refused(stride):
    with pytest.raises(InputError, match=r"does not cover the image .* at most the crop"):
        inference.slide_inference(lambda x: x, np.zeros((1, 32, 32, 3)), (8, 8), stride)


def test_images_of_a_wrong_shape_or_type_are_refused():
    with pytest.raises(InputError, match=r"the shape \(32, 32, 3\); use .* \[B, H, W, 3\]"):
        inference.slide_inference(lambda x: x, np.zeros((32, 32, 3)), (8, 8), (8, 8))
    for image in (np.zeros((32, 32), np.uint8), np.zeros((32, 32, 3), np.float32)):
        with pytest.raises(InputError, match=r"is (uint8|float32) .*; use uint8 RGB \[H, W, 3\]"):
            inference.multi_scale_inference(lambda x: x, image, base_size=(32, 32))


def picture(height=37, width=52):
    small = np.random.default_rng(1).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height))


def network(images):
    """An asymmetric convolution of stride 4."""
    kernel = np.random.default_rng(2).standard_normal((5, 5, 3, 4)) / 5
    return jax.lax.conv_general_dilated(
        images,
        jnp.asarray(kernel, images.dtype),
        (4, 4),
        ((2, 2), (2, 2)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("window", [None, ((20, 24), (12, 16))])
def test_multi_scale_inference_is_the_formula(x64, window, align_corners):
    image = picture()
    crop, stride = window or (None, None)
    total = 0
    # The image is fitted into 40 x 30 times the ratio.
    for size in [(14, 20), (28, 40), (43, 60)]:
        resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        for flip in (1, -1):
            x = ((resized[:, ::flip].astype(np.float64) - MEAN) / STD)[None]
            if window is None:
                logits = resize(network(x), size, align_corners=align_corners)
            else:
                logits = inference.slide_inference(network, x, crop, stride, align_corners)
            logits = resize(logits, image.shape[:2], align_corners=align_corners)
            total = total + softmax(np.asarray(logits))[0, :, ::flip]
    found = inference.multi_scale_inference(
        network,
        image,
        base_size=(40, 30),
        ratios=(0.5, 1.0, 1.5),
        crop=crop,
        stride=stride,
        align_corners=align_corners,
    )
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, total / 6, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(np.sum(found, -1), 1, rtol=1e-12)


def test_each_ratio_scales_the_base_size():
    seen = []

    def apply_fn(images):
        seen.append(images.shape[1:3])
        return images

    inference.multi_scale_inference(apply_fn, picture(75, 100), base_size=(512, 128))
    # The short side is int(128 r), and each size passes twice.
    assert seen[::2] == seen[1::2]
    assert seen[::2] == [(64, 85), (96, 128), (128, 171), (160, 213), (192, 256), (224, 299)]


def test_plain_inference_resizes_logits_twice():
    image = picture(48, 48)
    found = inference.multi_scale_inference(
        network, image, base_size=(30, 30), ratios=(1.0,), flip=False
    )
    x = ((cv2.resize(image, (30, 30)) - MEAN) / STD)[None].astype(np.float32)
    once = resize(network(x), (48, 48))
    twice = resize(resize(network(x), (30, 30)), (48, 48))
    np.testing.assert_allclose(found, softmax(np.asarray(twice))[0], atol=1e-5)
    assert np.abs(found - softmax(np.asarray(once))[0]).max() > 1e-3


def test_a_flipped_image_has_flipped_probabilities():
    image = picture()
    kwargs = {"base_size": (52, 37), "ratios": (1.0, 1.5)}
    plain = inference.multi_scale_inference(network, image, **kwargs)
    mirrored = inference.multi_scale_inference(network, image[:, ::-1], **kwargs)
    np.testing.assert_allclose(mirrored[:, ::-1], plain, atol=1e-5)
    one_way = inference.multi_scale_inference(network, image, flip=False, **kwargs)
    assert np.abs(one_way - plain).max() > 1e-3


def test_a_pointwise_network_is_exact_at_every_scale():
    """A resize does not change an image of one color, so the answer is known."""
    image = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    found = inference.multi_scale_inference(lambda x: 2 * x, image, base_size=(60, 40))
    expected = softmax(2 * (image - MEAN) / STD)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"base_size": (0, 0)}, r"base_size=\(0, 0\) .* use larger sizes or ratios"),
        ({"base_size": (32, 32), "ratios": ()}, "ratios is empty; use one or more"),
        ({"base_size": (32, 32), "crop": (8, 8)}, "use both or neither"),
    ],
)
def test_impossible_protocols_are_refused(kwargs, message):
    with pytest.raises(InputError, match=message):
        inference.multi_scale_inference(lambda x: x, picture(), **kwargs)


def test_protocols_of_the_published_rows():
    whole = segmentation.get_config("nonlocal_r50-d8_512x512_80k_ade20k")
    assert Predictor(whole).protocol == {
        "base_size": (2048, 512),
        "ratios": (1.0,),
        "flip": False,
        "crop": None,
        "stride": None,
        "align_corners": False,
        "mean": inference.MEAN,
        "std": inference.STD,
    }
    slide = segmentation.get_config("dnl_r50-d8_769x769_40k_cityscapes")
    assert Predictor(slide, multi_scale=True).protocol == {
        "base_size": (2049, 1025),
        "ratios": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        "flip": True,
        "crop": (769, 769),
        "stride": (513, 513),
        "align_corners": True,
        "mean": inference.MEAN,
        "std": inference.STD,
    }


@pytest.mark.parametrize(
    ("leaf", "value", "message"),
    [
        ("evaluation.mode", "slid", "evaluation.mode is 'slid'; use 'whole' or 'slide'"),
        ("mesh.context", 0, "mesh.context is 0; use a positive integer"),
    ],
)
def test_an_invalid_config_is_refused(leaf, value, message):
    config = segmentation.get_config("demo_fcn")
    config.update_from_flattened_dict({leaf: value})
    with pytest.raises(InputError, match=message):
        Predictor(config)


def test_label_maps_are_the_most_probable_classes():
    config = segmentation.get_config("demo_nonlocal")
    variables = random_variables(config.model)
    segment = Predictor(config)
    image = picture(45, 71)
    labels = segment.label_maps(variables)(image)
    assert labels.shape == (45, 71)
    assert labels.dtype == np.uint8
    probabilities = segment(variables)(image)
    assert probabilities.shape == (45, 71, 3)
    np.testing.assert_array_equal(labels, np.argmax(probabilities, -1))


def dense_label_map(config, variables, image, protocol):
    """The protocol with logits of all classes and pixels."""
    apply_fn = jax.jit(create_model(config.model).apply)
    size, corners = image.shape[:2], config.model.align_corners
    total = 0
    for ratio in protocol["ratios"]:
        scale = tuple(int(side * ratio) for side in protocol["base_size"])
        resized = resize_image(image, keep_ratio_size(size, scale))
        for flip in (1, -1) if protocol["flip"] else (1,):
            x = normalize(resized[None, :, ::flip], config.data.mean, config.data.std)
            height, width = map(min, protocol["crop"], x.shape[1:3])
            logits = np.zeros((*x.shape[1:3], config.model.num_classes), np.float32)
            count = np.zeros((*x.shape[1:3], 1), np.float32)
            strides = protocol["stride"]
            for y in _windows.cut(x.shape[1], height, min(strides[0], height)).starts:
                for left in _windows.cut(x.shape[2], width, min(strides[1], width)).starts:
                    part = slice(y, y + height), slice(left, left + width)
                    logits[part] += apply_fn(variables, x[:, part[0], part[1]])[0]
                    count[part] += 1
            logits = resize(jnp.asarray(logits / count), size, align_corners=corners)
            total = total + jax.nn.softmax(logits)[:, ::flip]
    return np.argmax(total, -1)


@pytest.mark.parametrize(("mode", "align_corners"), [("whole", False), ("slide", True)])
def test_label_maps_do_not_depend_on_the_parts_in_which_they_are_computed(
    monkeypatch, mode, align_corners
):
    config = segmentation.get_config("demo_fcn")
    config.model.width = 8
    config.model.align_corners = align_corners
    config.evaluation.update(
        mode=mode, crop=(40, 48), stride=(24, 30), ratios=(0.5, 1.25), base_size=(60, 90)
    )
    variables = random_variables(config.model)
    image = picture(111, 173)
    protocol = Predictor(config, multi_scale=True).protocol
    windows = {"crop": (999, 999), "stride": (999, 999)} if mode == "whole" else {}
    expected = dense_label_map(config, variables, image, {**protocol, **windows})
    assert 0.02 < (expected == expected.max()).mean() < 0.98
    for part in (3 * 37**2, 2**30):
        monkeypatch.setattr(predictor, "_PART", part)
        label_map = Predictor(config, multi_scale=True).label_maps(variables)
        np.testing.assert_array_equal(label_map(image), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_label_maps_does_not_grow_with_classes_times_pixels():
    def memory(name):
        status = pathlib.Path("/proc/self/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024

    config = segmentation.get_config("demo_fcn")
    config.model.update(width=8, num_classes=150)
    label_map = Predictor(config).label_maps(random_variables(config.model))
    label_map(picture(64, 64))
    image = picture(600, 800)
    before = memory("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    assert label_map(image).shape == (600, 800)
    # Logits of all classes and pixels take 275 MiB.
    assert memory("VmHWM") - before < 250


def test_label_maps_of_more_than_256_classes_have_16_bits(monkeypatch):
    class Model:
        stride = 1

        def apply(self, variables, images, *, upsample):
            return jax.nn.one_hot(jnp.full(images.shape[:3], 299), 300)

    monkeypatch.setattr(_programs, "create_model", lambda config: Model())
    config = segmentation.get_config("demo_fcn")
    config.model.num_classes = 300
    labels = Predictor(config).label_maps({})(picture(8, 8))
    assert labels.dtype == np.uint16
    assert (labels == 299).all()
