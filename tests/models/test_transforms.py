"""Networks under the transforms of JAX and Flax, and as static arguments."""

import copy
import dataclasses
import functools
import pickle

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import nonlocal_jax as nlj
from nonlocal_jax.backbones import ResNet
from nonlocal_jax.blocks import DisentangledNonLocalBlock, GlobalContextBlock, NonLocalBlock
from nonlocal_jax.heads import FCNHead
from nonlocal_jax.models import SegmentationNet
from tests.helpers import TINY, random_variables

CONFIG = {**TINY, "strides": (1, 2), "dropout": 0.0, "block_at": ("layer2.0",)}


def rebuilt(kind, module):
    """A module of another class with the same attributes."""
    names = [field.name for field in dataclasses.fields(module)]
    attributes = {n: getattr(module, n) for n in names if n not in ("parent", "name")}
    return kind(**attributes)


def in_remat(model):
    """Recomputes the backbone and the decode head for the gradient."""
    remat = functools.partial(nn.remat, static_argnums=(2,))
    head = rebuilt(remat(FCNHead), model.decode_head)
    return model.copy(backbone=rebuilt(remat(ResNet), model.backbone), decode_head=head)


def in_jit(model):
    return rebuilt(nn.jit(SegmentationNet, static_argnums=(2,)), model)


@pytest.mark.parametrize("transform", [in_remat, in_jit])
def test_train_may_be_static(transform):
    model = nlj.create_model(CONFIG)
    transformed = transform(model)
    variables = random_variables(CONFIG)
    images = jax.random.normal(jax.random.key(0), (2, 17, 17, 3))

    def results(model):
        def loss(params):
            inputs = {**variables, "params": params}
            outputs, updates = model.apply(inputs, images, True, mutable=["batch_stats"])
            return sum(jnp.sum(jnp.sin(logits)) for logits in outputs), updates

        gradient, updates = jax.grad(loss, has_aux=True)(variables["params"])
        return model.apply(variables, images), gradient, updates

    found, expected = (jax.jit(functools.partial(results, m))() for m in (transformed, model))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)
    shapes = jax.eval_shape(transformed.init, jax.random.key(0), images)
    chex.assert_trees_all_equal_shapes(shapes, variables)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "bfloat16", "norm": "frozen_batch_norm"},
        {"block": "disentangled_nonlocal", "block_mode": "gaussian"},
        {"block": "global_context", "block_fusion": ["add", "multiply"]},
    ],
)
def test_equal_networks_are_compiled_once(options):
    config = {**CONFIG, **options}
    model = nlj.create_model(config)
    traces = []

    @functools.partial(jax.jit, static_argnames="model")
    def twice(model, x):
        traces.append(model)
        return 2 * x

    equal = (
        nlj.create_model(config),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        model.clone(),
    )
    for network in (model, *equal):
        assert network == model
        assert hash(network) == hash(model)
        twice(network, jnp.ones(3))
    assert len(traces) == 1

    for change in ({"width": 16}, {"dtype": "default"}, {"dropout": 0.5}, {"block_axes": "space"}):
        assert nlj.create_model({**config, **change}) != model


@pytest.mark.parametrize("kind", [NonLocalBlock, DisentangledNonLocalBlock, GlobalContextBlock])
def test_a_block_equals_its_copy(kind):
    copied = copy.deepcopy(kind())
    assert copied == kind()
    assert hash(copied) == hash(kind())
