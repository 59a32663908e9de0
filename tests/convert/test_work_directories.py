"""Work directories of training runs and saved steps, as ``train.Checkpoints`` writes them."""

import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from nonlocal_jax import convert, models
from nonlocal_jax.errors import InputError
from tests.helpers import TINY, random_variables


def write_steps(workdir, variables, model_config, steps=(4,)):
    metadata = {"config": {"model": json.loads(json.dumps(model_config))}}
    with ocp.CheckpointManager(
        workdir / "checkpoints", item_names=("variables", "metadata")
    ) as manager:
        for step in steps:
            args = ocp.args.Composite(
                variables=ocp.args.StandardSave(variables(step)),
                metadata=ocp.args.JsonSave({"step": step, **metadata}),
            )
            manager.save(step, args=args)
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Steps 3 and 4 of the tiny network, whose variables depend on the step."""
    workdir = tmp_path_factory.mktemp("run")
    return write_steps(workdir, lambda step: random_variables(TINY, seed=step), TINY, (3, 4))


def assert_identical(loaded, expected):
    def compare(a, b):
        assert isinstance(a, np.ndarray)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)

    jax.tree.map(compare, loaded, expected)


@pytest.mark.parametrize(("place", "step"), [(".", 4), ("checkpoints/4", 4), ("checkpoints/3", 3)])
def test_the_last_step_or_the_given_one(workdir, place, step):
    assert_identical(convert.load(workdir / place, TINY), random_variables(TINY, seed=step))


def test_an_unfinished_step_does_not_count(workdir, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(workdir / "checkpoints", checkpoints)
    (checkpoints / "4").rename(checkpoints / "4.orbax-checkpoint-tmp")
    assert_identical(convert.load(tmp_path, TINY), random_variables(TINY, seed=3))


def test_other_classes_with_reinit_head(workdir):
    config = TINY | {"num_classes": 5}
    with pytest.raises(InputError, match=r"(?s)num_classes is 3 .*reinit_head=True"):
        convert.load(workdir, config)
    loaded = convert.load(workdir, config, reinit_head=True)
    assert loaded["params"]["decode_head"]["conv_seg"]["kernel"].shape == (8, 5)
    old = random_variables(TINY, seed=4)
    assert_identical(loaded["params"]["backbone"], old["params"]["backbone"])


@pytest.mark.parametrize("path", ["empty", "other"])
def test_a_directory_without_checkpoints_is_refused(tmp_path, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no checkpoint in .*use a work directory"):
        convert.load(tmp_path / path, TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"width": 16},
            r"(?s)width is 8 .* 16 .*a different shape.*is \(8,\), \(16,\) in the mod",
        ),
        ({"stage_sizes": (1, 3)}, r"(?s)stage_sizes is \(1, 2\) .*missing:.*layer2_2"),
        ({"block": "none"}, r"(?s)block is 'nonlocal' .*not in the model:.*decode_head/block"),
        ({"block_use_scale": False}, r"fit the model config\nblock_use_scale is True .* False"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(workdir, change, message):
    with pytest.raises(InputError, match=message):
        convert.load(workdir, TINY | change)


@pytest.mark.parametrize(("name", "file"), [("variables", "_METADATA"), ("metadata", "metadata")])
def test_a_damaged_checkpoint_is_refused(workdir, tmp_path, name, file):
    shutil.copytree(workdir / "checkpoints" / "4", tmp_path / "4")
    (tmp_path / "4" / name / file).write_text("{")
    with pytest.raises(InputError, match=r"cannot read the checkpoint .*4: .*; use another step"):
        convert.load(tmp_path / "4", TINY)


def test_float64_stays_float64(tmp_path):
    config = TINY | {"stage_sizes": (1, 1), "block": "none"}
    double = jax.tree.map(np.float64, random_variables(config))
    with jax.enable_x64(True):
        write_steps(tmp_path, lambda _: double, config)
    assert_identical(convert.load(tmp_path, config), double)


class Line(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)


def test_a_network_without_pytorch_names(tmp_path, monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "line", lambda *, slope=1.0: Line())
    config = {"network": "line"}
    variables = {"params": {"Dense_0": {"kernel": np.ones((3, 2)), "bias": np.zeros(2)}}}
    variables = jax.tree.map(np.float32, variables)
    write_steps(tmp_path, lambda _: variables, config)
    assert_identical(convert.load(tmp_path, {**config, "slope": 1.0}), variables)
    with pytest.raises(InputError, match=r"slope is 1\.0 in the checkpoint, 2\.0 in the config"):
        convert.load(tmp_path, {**config, "slope": 2.0})

    convert.save(tmp_path / "a.safetensors", variables, config)
    assert_identical(convert.load(tmp_path / "a.safetensors", config), variables)
    for refused in (
        lambda: convert.load(tmp_path, config, reinit_head=True),
        lambda: convert.export_torch(tmp_path / "a.pth", variables, config),
    ):
        with pytest.raises(
            InputError, match="no table of PyTorch names for the network 'line'; add one"
        ):
            refused()
