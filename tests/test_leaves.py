"""Every value of every config field is refused by its name, or the experiment trains."""

import math

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from nonlocal_jax import data
from nonlocal_jax.configs import segmentation, video
from nonlocal_jax.errors import InputError
from nonlocal_jax.sharding import check_batch_size, make_shardings
from nonlocal_jax.train.experiment import create_experiment
from nonlocal_jax.train.state import abstract_state
from nonlocal_jax.train.step import make_train_step

# Together they have every field.
SEGMENTATION = ("demo_nonlocal", "demo_dnl", "demo_gc")
VIDEO = ("demo_video_nonlocal", "demo_video_dnl", "demo_video_gc")
SMALL = {"width": 4, "head_channels": 4, "auxiliary_channels": 4}
EXAMPLE = {
    "image": np.zeros((24, 32, 3), np.uint8),
    "label": np.zeros((24, 32), np.uint8),
    "video": data.FrameArray(np.zeros((9, 24, 32, 3), np.uint8)),
    "id": "a",
}


def fields(name):
    """The fields of a small experiment."""
    config = (segmentation if name in SEGMENTATION else video).get_config(name).to_dict()
    config["model"].update({k: v for k, v in SMALL.items() if k in config["model"]})
    size = {"crop": (16, 16)} if name in SEGMENTATION else {"crop": 16, "frames": 4}
    config["data"].update(batch_size=2, **size)
    return flatten_dict({**config, "published": {"miou": 1.0}}, sep=".")


ALL = {
    (task, field): name
    for task in (VIDEO, SEGMENTATION)
    for name in reversed(task)
    for field in fields(name)
}


def prepare(config):
    """Builds all parts of a run but the compiled programs, and prepares an example."""
    experiment = create_experiment(config)
    shardings = make_shardings(config.mesh, jax.devices()[:1])
    check_batch_size(experiment.batch_size, shardings, config.train.accumulate)
    example = dict(EXAMPLE)
    if config.task == "classification":
        example["label"] = 0 if config.loss.kind == "softmax" else [0]
        data.read_views(example["video"], config)
    experiment.task.prepare(example, config, np.random.default_rng(0))
    experiment.task.evaluator(config, [example])
    assert jax.numpy.isfinite(experiment.schedule(0))
    return experiment, shardings


def trace(experiment, shardings):
    """Traces a training step."""
    batch = experiment.task.batch(experiment.config)
    step = make_train_step(experiment, shardings)
    step.eval_shape(abstract_state(experiment, shardings), batch)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.floats(-2, 3),
    st.sampled_from([math.inf, -math.inf, math.nan, 1e300, 10**400, -(2**40)]),
    st.sampled_from(["", "x", "(", "none", "auto", "layer1.0"]),
)
SEQUENCES = st.lists(SCALARS, max_size=4)


def changed(value):
    """Values that are almost right: of another sign, length, range or type."""
    if isinstance(value, bool | str) or value is None:
        return st.sampled_from([str(value), f"{value}x", (value,), [value], {"a": value}])
    if isinstance(value, int | float):
        return st.sampled_from([-value, 2 * value, value / 2, value + 1, str(value), (value,)])
    if not isinstance(value, tuple):
        return SCALARS
    flat = [x for x in value if isinstance(x, int | float)]
    opposite = tuple(-x for x in flat)
    return st.sampled_from([value[:-1], value * 2, value[::-1], [*value], opposite, *value, "(8)"])


@pytest.mark.parametrize(
    ("name", "field"),
    [pytest.param(name, field, id=f"{name}-{field}") for (_, field), name in ALL.items()],
)
def test_a_field_is_refused_by_its_name_or_trains(name, field):
    before = fields(name)
    accepted = []

    def is_accepted(value, function, *arguments):
        try:
            return function(*arguments)
        except InputError as error:
            message = str(error)
        # A block knows its fields without their prefix.
        assert field.rpartition(".")[2].removeprefix("block_") in message, repr(value)
        return None

    @settings(
        max_examples=6,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],  # on a busy machine
    )
    @given(st.one_of(changed(before[field]), SCALARS, SEQUENCES, SEQUENCES.map(tuple)))
    def draw(value):
        config = ConfigDict(unflatten_dict({**before, field: value}, sep="."))
        if parts := is_accepted(value, prepare, config):
            accepted.append((value, parts))

    draw()
    if field.startswith("model.") and accepted:
        value, parts = accepted[-1]
        is_accepted(value, trace, *parts)


@pytest.mark.parametrize(("module", "task"), [(segmentation, SEGMENTATION), (video, VIDEO)])
def test_no_experiment_has_other_fields(module, task):
    known = {field for name in task for field in fields(name)} | {"model.block_norm"}
    for name in module.NAMES:
        config = module.get_config(name).to_dict()
        assert {*flatten_dict({**config, "published": 0}, sep=".")} - {"published"} <= known, name
