"""Our forms of a case, as programs."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import segmentation
from experiments.benchmark.cases import BLOCKS, NETWORKS, Case, Program
from experiments.benchmark.operations import OPERATIONS
from nonlocal_jax import create_model
from nonlocal_jax.models import BLOCKS as MODULES
from nonlocal_jax.train import create_optimizer, create_state, make_mesh, make_train_step, to_global


def network_config(case: Case) -> ConfigDict:
    """The experiment of a network: that of Cityscapes at another size, width and type."""
    backbone, head = NETWORKS[case.name]
    config = segmentation.get_config(f"{head}_{backbone}_512x1024_40k_cityscapes")
    # Sizes of 8 n + 1 put corners on corners.
    aligned = all(n % 8 == 1 for n in case.size)
    config.model.update(
        align_corners=aligned,
        width=case.channels,
        head_channels=8 * case.channels,
        auxiliary_channels=4 * case.channels,
        dtype=case.dtype,
    )
    config.data.update(crop=case.size, batch_size=case.batch_size)
    return config


def _random(case: Case, *shapes: tuple[int, ...]) -> list[jax.Array]:
    generator = np.random.default_rng(0)
    return [
        jnp.asarray(case.std * generator.standard_normal(shape, np.float32), case.dtype)
        for shape in shapes
    ]


def _program(function, *args: Any) -> Program:
    compiled = jax.jit(function).lower(*args).compile()
    return Program(lambda: compiled(*args), jax.block_until_ready)


def _operation(case: Case, options: Mapping[str, str]) -> Program:
    operation = OPERATIONS[case.name]
    shape = (case.batch_size, case.positions, case.channels)
    arrays = _random(case, *operation.shapes(*shape))
    forward = functools.partial(operation.function, **operation.options(case.channels), **options)

    if not case.backward:
        return _program(forward, *arrays)

    def gradient(dy, *arrays):
        y, pull = jax.vjp(forward, *arrays)
        return y, pull(dy)

    (dy,) = _random(case, jax.eval_shape(forward, *arrays).shape)
    return _program(gradient, dy, *arrays)


def _block(case: Case, options: Mapping[str, str]) -> Program:
    block = MODULES[BLOCKS[case.name]](dtype=case.dtype, **options)
    (x,) = _random(case, (case.batch_size, *case.size, 2 * case.channels))
    # It runs once, and optimizing it would take longer than that.
    fast = {"xla_backend_optimization_level": 0}
    variables = jax.jit(block.init, compiler_options=fast)(jax.random.key(0), x)

    if not case.backward:
        return _program(block.apply, variables, x)

    def gradient(variables, x, dy):
        statistics = {k: v for k, v in variables.items() if k != "params"}

        def forward(params, x):
            inputs = {"params": params, **statistics}
            return block.apply(inputs, x, train=True, mutable=list(statistics))

        y, pull, statistics = jax.vjp(forward, variables["params"], x, has_aux=True)
        return y, statistics, pull(dy)

    (dy,) = _random(case, x.shape)
    return _program(gradient, variables, x, dy)


def _network(case: Case, options: Mapping[str, str]) -> Program:
    config = network_config(case)
    config.model.update({f"block_{name}": value for name, value in options.items()})
    model = create_model(config.model)
    tx, _ = create_optimizer(config)
    mesh = make_mesh(jax.devices()[:1])
    # Parameters do not depend on the size of the images.
    state = create_state(model, tx, mesh=mesh, seed=0, image_size=(65, 65))
    shape = (case.batch_size, *case.size)
    generator = np.random.default_rng(0)
    if not case.backward:
        images = generator.standard_normal((*shape, 3), np.float32)
        return _program(model.apply, state.variables, jnp.asarray(images))

    batch = {
        "image": generator.integers(256, size=(*shape, 3), dtype=np.uint8),
        "label": generator.integers(config.model.num_classes, size=shape, dtype=np.uint8),
    }
    batch = to_global(batch, mesh)
    compiled = make_train_step(model, config, mesh).lower(state, batch).compile()

    def run():
        nonlocal state  # the step takes the old one's memory
        state, metrics = compiled(state, batch)
        return metrics

    return Program(run, jax.block_until_ready)


def build(case: Case, form: str) -> Program:
    """The program of a form: "ours" (what "auto" chooses), or "ours_" and its name."""
    options = {}
    if case.pairwise:
        options["implementation"] = form.removeprefix("ours").removeprefix("_") or "auto"
    if case.is_network:
        return _network(case, options)
    return (_block if case.name in BLOCKS else _operation)(case, options)
