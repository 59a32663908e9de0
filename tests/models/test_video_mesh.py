"""A video network whose frames are split over devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from nonlocal_jax.models import create_model
from nonlocal_jax.sharding import Shardings, make_mesh, split_positions, use_mesh
from tests.helpers import draw

I3D = {
    "network": "video",
    "num_classes": 3,
    "dropout": 0.0,
    "stage_sizes": (1, 1),
    "strides": (1, 2),
    "width": 4,
    "conv1_frames": 5,
    "conv1_stride": 2,
    "pool1_stride": 2,
    "pool2_frames": 2,
    "inflate_at": ("layer1.0", "layer2.0"),
}
# Two groups of four devices, with two clips each.
SHAPE = 4, 64, 16, 16, 3


def make_loss(options, mesh):
    """The loss of the training mode, and its variables."""
    model = create_model(I3D | options)
    clip = jax.ShapeDtypeStruct((1, *SHAPE[1:]), jnp.float32)
    variables = draw(jax.eval_shape(model.init, jax.random.key(0), clip))

    def loss(params, clips):
        state = {**variables, "params": params}
        with use_mesh(mesh):
            clips = split_positions(clips)
            logits, _ = model.apply(state, clips, train=True, mutable=["batch_stats"])
            return jnp.mean(jnp.square(logits))

    return loss, variables["params"]


def jit(function, mesh):
    shardings = Shardings(mesh)
    places = shardings.replicated, shardings.batch
    return jax.jit(function, in_shardings=places, out_shardings=shardings.replicated)


def test_no_feature_map_is_gathered():
    """Neither forward nor backward. Every collective of a feature map is a halo of some frames."""
    mesh = make_mesh(context=4)
    loss, params = make_loss({}, mesh)
    clips = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    text = jit(jax.grad(loss), mesh).lower(params, clips).compile().as_text()
    gathered = re.findall(r"= \(?(\w+\[[\d,]*\])\S* all-gather", text)
    assert [shape for shape in gathered if shape.count(",") >= 3] == []
    assert "collective-permute" in text


def test_the_loss_is_that_of_one_device(x64):
    block = {"block": "nonlocal", "block_sub_sample": "before"}
    options = block | {"block_at": ("layer1.0", "layer2.0"), "strides": (1, 1)}
    clips = np.random.default_rng(0).standard_normal(SHAPE)
    losses = []
    for mesh in (make_mesh(context=4), make_mesh(jax.devices()[:1])):
        loss, params = make_loss(options, mesh)
        losses.append(float(jit(loss, mesh)(params, clips)))
    np.testing.assert_allclose(*losses, rtol=1e-8)
