"""The three values of ``model.dtype``: types and precision of the products."""

import re

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import nonlocal_jax as nlj
from configs import segmentation
from nonlocal_jax.backbones.resnet import Bottleneck
from nonlocal_jax.heads import FCNHead
from nonlocal_jax.topology import topology_devices
from tests.helpers import TINY, random_variables

SMALL = {**TINY, "stage_sizes": (1, 1), "dilations": (1, 2), "contract_dilation": False}


def gradient_of(model, loss):
    """The function (variables, images) -> value and gradient of the loss."""

    def gradient(variables, images):
        def compute_loss(params):
            outputs, _ = model.apply(
                {**variables, "params": params}, images, True, mutable=["batch_stats"]
            )
            return loss(outputs)

        return jax.value_and_grad(compute_loss)(variables["params"])

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
    dilated = {"dilations": (1, 2), "contract_dilation": False, "dropout": 0.0}
    model = nlj.create_model({**config, **dilated, "dtype": dtype})
    shapes = arguments(model, (64, 64))

    def full_precision(function):
        lowered = function.trace(*shapes).lower(lowering_platforms=("cpu", "tpu", "cuda"))
        products = re.findall(r"stablehlo\.(?:convolution|dot_general).*", lowered.as_text())
        assert len(products) > 15
        if dtype == "default":  # products inside of attention may have full precision all the same
            products = [product for product in products if "batching_dims" not in product]
        return {product.count("HIGHEST") == 2: product for product in products}

    highest = dtype == "float32"
    assert set(full_precision(gradient_of(model, sum_of_sines))) == {highest}
    # Only the resize of the logits from 16 to 64 rows and columns always has full precision.
    found = full_precision(jax.jit(model.apply))
    assert set(found) == {highest, True}
    assert highest or "tensor<64x16xf32>" in found[True]


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(("dtype", "rounded"), [("float32", False), ("default", True)])
def test_a_tpu_multiplies_float32_unrounded(dtype, rounded):
    model = nlj.create_model({**SMALL, "dropout": 0.0, "dtype": dtype})
    (device, *_) = topology_devices("v5e:2x2")
    shapes = arguments(model, (32, 32), jax.sharding.SingleDeviceSharding(device))
    text = gradient_of(model, sum_of_sines).lower(*shapes).compile().as_text()
    products = re.findall(r" convolution\(.*", text)
    assert len(products) > 30
    assert ("bf16" in text) == rounded
    if not rounded:
        assert all("operand_precision={highest,highest}" in product for product in products)


def loss_of(block, dtype, size):
    """The function (variables, images) -> value and gradient of the loss, and its arguments."""
    places = {"block": block, "block_at": ("layer1.0",), "dropout": 0.0}
    config = {**SMALL, **places, "dtype": dtype}
    labels = jax.random.randint(jax.random.key(1), (2, *size), 0, 3)
    options = {"auxiliary_weight": 0.4, "avg_non_ignore": False, "align_corners": False}

    def loss(outputs):
        return nlj.train.loss_fn(outputs, labels, options)[0]

    images = jax.random.normal(jax.random.key(0), (2, *size, 3))
    return gradient_of(nlj.create_model(config), loss), random_variables(config), images


@pytest.mark.parametrize("block", ["nonlocal", "disentangled_nonlocal", "global_context"])
def test_bfloat16_combines_no_types_and_ranks_silently(block):
    """See ``conftest`` for the settings of JAX that refuse this."""
    function, variables, images = loss_of(block, "bfloat16", (41, 50))
    loss, gradient = jax.eval_shape(function, variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((loss, gradient))} == {jnp.dtype("float32")}


def test_loss_and_gradient_in_bfloat16_are_close_to_float32():
    found, expected = (
        function(*args)
        for function, *args in (
            loss_of("disentangled_nonlocal", dtype, (17, 25)) for dtype in ("bfloat16", "float32")
        )
    )
    assert found[0] != expected[0]
    np.testing.assert_allclose(found[0], expected[0], rtol=0.02)
    one, other = (jax.flatten_util.ravel_pytree(gradient)[0] for _, gradient in (found, expected))
    assert jnp.linalg.norm(one - other) < 0.5 * jnp.linalg.norm(other)


@pytest.mark.parametrize("input_dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("module", [FCNHead, Bottleneck])
def test_inputs_of_any_type_are_converted(module, dtype, input_dtype):
    """The output of the residual block has the type of the computation."""
    part = module(**{"num_classes": 3, "channels": 4} if module is FCNHead else {"width": 2})
    x = jax.ShapeDtypeStruct((1, 8, 8, 8), input_dtype)
    y, _ = jax.eval_shape(part.clone(dtype=dtype).init_with_output, jax.random.key(0), x)
    assert y.dtype == (jnp.float32 if module is FCNHead else dtype or jnp.float32)
