"""Images of many sizes, and a small network in float64 that segments them."""

import functools

import cv2
import jax
import numpy as np

from configs import segmentation
from nonlocal_jax.evaluation import Predictor, confusion_matrix, multi_scale_inference
from nonlocal_jax.models import create_model
from tests.helpers import random_variables


def experiment(block="nonlocal", **options):
    """The config of a network with strides, dilation and blocks, and its variables."""
    config = segmentation.get_config(f"demo_{block}")
    config.model.update(
        stage_sizes=(1, 1, 1),
        strides=(1, 2, 1),
        dilations=(1, 1, 2),
        block_at=("layer2.0",),
        width=4,
        head_channels=8,
        head_kernel_size=3,
        auxiliary_channels=4,
        **options,
    )
    config.evaluation.base_size = (256, 64)
    return config, jax.tree.map(np.float64, random_variables(config.model))


def examples(number, sizes):
    """``number`` examples of so many sizes, landscape and portrait, up to 2:1."""
    rng = np.random.default_rng(0)
    shapes = set()
    while len(shapes) < sizes:
        short = rng.integers(40, 90)
        shape = int(short), int(short * rng.uniform(1, 2))
        shapes.add(shape if len(shapes) % 2 else shape[::-1])
    shapes = sorted(shapes)
    source = []
    for i in range(number):
        height, width = shapes[i % sizes]
        coarse = rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)
        labels = rng.choice([0, 1, 2, 255], (height, width)).astype(np.uint8)
        source.append({"image": cv2.resize(coarse, (width, height)), "label": labels, "id": i})
    return source


def confusion_without_padding(config, variables, source):
    """The confusion matrix of the images one by one. The network is compiled for each size."""
    protocol = Predictor(config).protocol
    apply_fn = jax.jit(functools.partial(create_model(config.model).apply, variables))
    total = 0
    for example in source:
        probabilities = multi_scale_inference(apply_fn, example["image"], **protocol)
        predictions = np.argmax(probabilities, -1)
        total = total + np.asarray(confusion_matrix(example["label"], predictions, 3), np.int64)
    return total
