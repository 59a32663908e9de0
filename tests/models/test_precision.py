"""The three values of ``model.dtype``: types and precision of the products."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nonlocal_jax as nlj
from configs import segmentation
from nonlocal_jax.topology import topology_devices
from tests.helpers import TINY, random_variables

BLOCKS = ["nonlocal", "disentangled_nonlocal", "global_context", "none"]


def gradient_of(model, loss):
    """The function (variables, images) -> logits, value and gradient of the loss."""

    def gradient(variables, images):
        def compute_loss(params):
            outputs, _ = model.apply(
                {**variables, "params": params}, images, True, mutable=["batch_stats"]
            )
            return loss(outputs)

        logits = model.apply(variables, images)
        return logits, *jax.value_and_grad(compute_loss)(variables["params"])

    return jax.jit(gradient)


def arguments(model, size, sharding=None):
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32, sharding=sharding)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        (shapes, images),
    )


def sum_of_sines(outputs):
    return sum(jnp.sum(jnp.sin(logits)) for logits in outputs)


@pytest.mark.parametrize("dtype", ["float32", "default"])
@pytest.mark.parametrize("name", ["demo_nonlocal", "demo_dnl", "demo_gc", "demo_fcn"])
def test_float32_is_full_precision_and_default_is_that_of_jax(name, dtype):
    config = segmentation.get_config(name).model.to_dict()
    dilated = {"dilations": (1, 2), "contract_dilation": False}
    model = nlj.create_model({**config, **dilated, "dtype": dtype})
    traced = gradient_of(model, sum_of_sines).trace(*arguments(model, (64, 64)))
    text = traced.lower(lowering_platforms=("cpu", "tpu", "cuda")).as_text()
    products = re.findall(r"stablehlo\.(?:convolution|dot_general).*", text)
    if dtype == "float32":
        assert all(product.count("HIGHEST") == 2 for product in products)
    else:
        # Some products inside of attention always have full precision, as has the resize.
        attention = [product for product in products if "batching_dims" in product]
        layers = [product for product in products if product not in attention]
        resize = [product for product in layers if "HIGHEST" in product]
        assert len(resize) == 2
        assert all("tensor<64x16xf32>" in product for product in resize)
    assert len(products) > 40


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(("dtype", "rounded"), [("float32", False), ("default", True)])
def test_a_tpu_multiplies_float32_unrounded(dtype, rounded):
    model = nlj.create_model({**TINY, "dilations": (1, 2), "dropout": 0.0, "dtype": dtype})
    (device, *_) = topology_devices("v5e:2x2")
    shapes = arguments(model, (32, 32), jax.sharding.SingleDeviceSharding(device))
    text = gradient_of(model, sum_of_sines).lower(*shapes).compile().as_text()
    products = re.findall(r" convolution\(.*", text)
    assert len(products) > 40
    assert ("bf16" in text) == rounded
    if not rounded:
        assert all("operand_precision={highest,highest}" in product for product in products)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_network_in_half_precision_trains(block):
    """Types and ranks are not combined silently, see ``conftest``. Sums are float32."""
    config = {**TINY, "block": block, "dropout": 0.0, "dilations": (1, 2)}
    if block != "none":
        config["block_at"] = ("layer2.0",)
    variables = random_variables(config)
    images = jax.random.normal(jax.random.key(0), (2, 33, 41, 3))
    labels = jax.random.randint(jax.random.key(1), (2, 33, 41), 0, 3)
    options = {"auxiliary_weight": 0.4, "avg_non_ignore": False, "align_corners": False}

    def run(dtype):
        model = nlj.create_model({**config, "dtype": dtype})
        loss = gradient_of(model, lambda outputs: nlj.train.loss_fn(outputs, labels, options)[0])
        return loss(variables, images)

    half, full = run("bfloat16"), run("float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    (logits, loss, gradient), (full_logits, full_loss, full_gradient) = half, full
    np.testing.assert_allclose(loss, full_loss, rtol=0.02)
    for one, other in ((logits, full_logits), (gradient, full_gradient)):
        one, other = (np.concatenate([a.ravel() for a in jax.tree.leaves(t)]) for t in (one, other))
        assert 0 < np.linalg.norm(one - other) < 0.1 * np.linalg.norm(other)
