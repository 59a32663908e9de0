"""Builds the programs of our variants of a case."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import segmentation, video
from experiments.benchmark._cases import (
    BLOCKS,
    NETWORKS,
    OPERATIONS,
    VIDEO_NETWORKS,
    Case,
    Program,
)
from nonlocal_jax.errors import InputError
from nonlocal_jax.models import BLOCKS as MODULES
from nonlocal_jax.sharding import Shardings, make_mesh, to_global
from nonlocal_jax.train import create_experiment, create_state, make_train_step


def network_config(case: Case) -> ConfigDict:
    """Returns the config of a network, with the size, width and type of the case.

    Segmentation networks have that of Cityscapes, video networks that of Kinetics-400.
    """
    # JAX's default precision, like PyTorch's "high": TF32 on a GPU.
    dtype = "default" if case.dtype == "float32" else case.dtype
    if case.is_video:
        frames, height, width = case.size
        if height != width:
            raise InputError(f"--sizes has {height}x{width} pixels; use square clips")
        config = video.get_config(VIDEO_NETWORKS[case.name])
        config.model.update(width=case.channels, dtype=dtype, norm_group_size=None)
        config.data.update(frames=frames, crop=height, batch_size=case.batch_size)
        return config
    backbone, head = NETWORKS[case.name]
    config = segmentation.get_config(f"{head}_{backbone}_512x1024_40k_cityscapes")
    config.model.update(
        align_corners=all(n % 8 == 1 for n in case.size),
        width=case.channels,
        head_channels=8 * case.channels,
        auxiliary_channels=4 * case.channels,
        dtype=dtype,
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
    # Compiled without optimization, because the initialization runs only once.
    compiler_options = {"xla_backend_optimization_level": 0}
    variables = jax.jit(block.init, compiler_options=compiler_options)(jax.random.key(0), x)

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
    experiment, shardings = create_experiment(config), Shardings(make_mesh(jax.devices()[:1]))
    state = create_state(experiment, shardings)
    shape = (case.batch_size, *case.size)
    generator = np.random.default_rng(0)
    if not case.backward:
        images = generator.standard_normal((*shape, 3), np.float32)
        return _program(experiment.model.apply, state.variables, jnp.asarray(images))

    numbers = {"image": 256, "clip": 256, "label": config.model.num_classes}
    batch = {
        name: generator.integers(numbers[name], size=leaf.shape, dtype=leaf.dtype)
        for name, leaf in experiment.task.batch(config).items()
    }
    batch = to_global(batch, shardings)
    compiled = make_train_step(experiment, shardings).lower(state, batch).compile()

    def run():
        nonlocal state  # the step donates the old state
        state, metrics = compiled(state, batch)
        return metrics

    return Program(run, jax.block_until_ready)


def build(case: Case, variant: str) -> Program:
    """Compiles ``ours`` (implementation="auto") or ``ours_IMPLEMENTATION`` of a case."""
    options = {}
    if case.pairwise:
        options["implementation"] = variant.removeprefix("ours").removeprefix("_") or "auto"
    if case.is_network:
        return _network(case, options)
    return (_block if case.name in BLOCKS else _operation)(case, options)
