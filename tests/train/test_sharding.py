"""Training on several devices gives the numbers of training on one device."""

import math
import shutil

import jax
import numpy as np
import pytest

from configs import segmentation
from nonlocal_jax import tasks
from nonlocal_jax.data import fingerprint
from nonlocal_jax.sharding import Shardings, make_mesh, make_shardings, to_global
from nonlocal_jax.train import Checkpoints, create_experiment, create_state, make_train_step
from nonlocal_jax.train.state import abstract_state
from tests.helpers import one_device, train


@pytest.fixture(autouse=True)
def _promotion():
    """Images are float32. Float64 parameters promote them."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _experiment(name, height, **model):
    config = segmentation.get_config(name)
    config.model.update(width=4, head_channels=8, auxiliary_channels=8, **model)
    config.data.update(batch_size=8, crop=(height, 32))
    config.steps = 20
    rng = np.random.default_rng(0)
    batches = [
        {
            "image": rng.integers(0, 256, (8, height, 32, 3), np.uint8),
            "label": rng.choice(np.array([0, 1, 2, 255], np.uint8), (8, height, 32)),
        }
        for _ in range(20)
    ]
    return create_experiment(config), batches


def _start(experiment):
    """Variables for which a block is not the identity and has gradients inside."""
    rng = np.random.default_rng(1)
    variables = jax.device_get(create_state(experiment, one_device()).variables)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.random(leaf.shape), variables)


def _run(experiment, shardings, variables, batches, dtype):
    """Parameters, statistics and metrics after a step for each batch, and the losses."""
    state = create_state(experiment, shardings, variables, dtype)
    step = make_train_step(experiment, shardings)
    losses = []
    for batch in batches:
        state, metrics = step(state, to_global(batch, shardings))
        losses.append(float(metrics["loss"]))
    leaves = jax.tree.leaves(state)
    assert all(len(leaf.sharding.device_set) == shardings.mesh.size for leaf in leaves)
    return jax.tree.leaves(jax.device_get((state.params, state.batch_stats, metrics))), losses


def test_eight_devices_train_as_one_does(x64):
    """The same global batches: parameters to 1e-8 in float64, losses to 1e-4 in float32."""
    experiment, batches = _experiment("demo_nonlocal", 32, dropout=0.1)
    variables = jax.device_get(create_state(experiment, one_device()).variables)
    eight = Shardings(make_mesh())
    assert eight.mesh.size == 8
    a, losses = _run(experiment, one_device(), variables, batches, np.float64)
    b, _ = _run(experiment, eight, variables, batches, np.float64)
    assert max(np.abs(x - y).max() for x, y in zip(a, b, strict=True)) <= 1e-8
    assert losses[-1] != losses[0]
    _, a = _run(experiment, one_device(), variables, batches, np.float32)
    _, b = _run(experiment, eight, variables, batches, np.float32)
    np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "height", "contexts"),
    [("demo_nonlocal", 33, (2, 8)), ("demo_dnl", 32, (4,)), ("demo_gc", 32, (8,))],
)
def test_devices_that_share_images_train_as_one_does(x64, name, height, contexts):
    """One step to 1e-10, with images split over 2, 4 and 8 devices."""
    # Dilated convolutions need rows from beyond the next device.
    stages = {"stage_sizes": (1, 1), "strides": (1, 1), "dilations": (1, 4)}
    experiment, batches = _experiment(name, height, head_kernel_size=3, dropout=0.1, **stages)
    variables = _start(experiment)
    one, _ = _run(experiment, one_device(), variables, batches[:1], np.float64)
    for context in contexts:
        shardings = Shardings(make_mesh(context=context))
        other, _ = _run(experiment, shardings, variables, batches[:1], np.float64)
        for a, b in zip(one, other, strict=True):
            error = np.max(np.abs(a - b)) / max(1, np.max(np.abs(a)))
            assert error <= 1e-10, (context, error)


def test_a_sharded_state_trains_resumes_and_evaluates(x64, config, source, tmp_path):
    """fsdp=2 and context=2 on 8 devices give the numbers of the replicated state, to 1e-10."""
    config.data.batch_size = 8
    config.model.update(width=8, dropout=0.0)
    config.train.update(checkpoint_every=3, evaluate_every=3)
    config.mesh = {"context": 2, "fsdp": 2, "rules": (("conv2/kernel$", (None, None, "fsdp")),)}
    sharded = make_shardings(config.mesh)

    def run(name, shardings):
        evaluate = tasks.get_task(config).evaluator(config, source[:2], shardings=shardings)
        options = {"evaluate": evaluate, "shardings": shardings, "dtype": "float64"}
        return train(config, tmp_path / name, source, **options)

    run("sharded", sharded)
    shutil.rmtree(tmp_path / "sharded" / "checkpoints" / "6")
    resumed, replicated = run("sharded", sharded), run("replicated", one_device())
    kernel = resumed.state.params["backbone"]["layer1_0"]["conv2"]["kernel"]
    momentum = [
        leaf
        for path, leaf in jax.tree.leaves_with_path(resumed.state.opt_state)
        if "layer1_0" in str(path) and "conv2" in str(path)
    ]
    for leaf in (kernel, *momentum):
        assert leaf.dtype == np.float64
        assert leaf.addressable_shards[0].data.shape == (3, 3, 4, 8)
    held, whole = (
        sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(run.state.params))
        for run in (resumed, replicated)
    )
    assert held < 0.6 * whole  # this network has few channels, so biases and norms count
    for a, b in zip(*(jax.tree.leaves(r.state.params) for r in (resumed, replicated)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    # A state is restored with other shardings, bit for bit.
    experiment = create_experiment(config)
    for name, run, other in (
        ("sharded", resumed, one_device()),
        ("replicated", replicated, sharded),
    ):
        with Checkpoints(tmp_path / name, config, fingerprint(source)) as checkpoints:
            state = checkpoints.restore(abstract_state(experiment, other, np.float64))
        assert state.params["backbone"]["layer1_0"]["conv2"]["kernel"].sharding.mesh == other.mesh
        expected, state = (s.replace(rng=jax.random.key_data(s.rng)) for s in (run.state, state))
        jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert resumed.metrics["val/miou"] == pytest.approx(replicated.metrics["val/miou"], abs=1e-10)


def test_fsdp_halves_the_bytes_of_the_state_on_each_device():
    """A published network, without its arrays."""
    config = segmentation.get_config("nonlocal_r50-d8_512x1024_40k_cityscapes")
    config.train.ema = 0.999
    experiment = create_experiment(config)

    def held(fsdp):
        state = abstract_state(experiment, make_shardings({"context": 1, "fsdp": fsdp}))
        shapes = (leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(state))
        return sum(map(math.prod, shapes))

    assert held(2) < 0.502 * held(1)
    assert held(8) < 0.13 * held(1)
