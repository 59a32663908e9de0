import shutil

import jax
import numpy as np
import pytest

from configs import segmentation
from nonlocal_jax import create_model
from nonlocal_jax.errors import InputError
from nonlocal_jax.train import (
    Checkpoints,
    create_optimizer,
    create_state,
    load_variables,
    make_mesh,
)
from nonlocal_jax.train.state import abstract_state


def _config():
    config = segmentation.get_config("demo_nonlocal")
    config.model.update(width=4, head_channels=8, auxiliary_channels=8)
    return config


def _options(config):
    return {"mesh": make_mesh(), "seed": config.seed, "image_size": (16, 16)}


@pytest.fixture(scope="module")
def state():
    config = _config()
    tx, _ = create_optimizer(config)
    return create_state(create_model(config.model), tx, **_options(config))


@pytest.fixture(scope="module")
def workdir(state, tmp_path_factory):
    """A work directory with steps 2, 3 and 4; 0 and 1 were dropped."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir, _config(), "fingerprint") as checkpoints:
        for step in range(5):
            checkpoints.save(state.replace(step=state.step + step))
    return workdir


def _restore(workdir, config, fingerprint="fingerprint"):
    tx, _ = create_optimizer(config)
    target = abstract_state(create_model(config.model), tx, **_options(config))
    with Checkpoints(workdir, config, fingerprint) as checkpoints:
        return checkpoints.restore(target)


def _assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_a_left_over_parameter_is_refused(workdir):
    without_block = segmentation.get_config("demo_fcn").model
    without_block.update(width=4, head_channels=8, auxiliary_channels=8)
    with pytest.raises(InputError, match=r"(?s)does not fit.*not in the model:.*decode_head/block"):
        load_variables(workdir, without_block)


def test_the_last_states_come_back_bit_for_bit(workdir, state):
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "3", "4"]
    restored = _restore(workdir, _config())
    assert int(restored.step) == 4
    _assert_equal(restored, state.replace(step=state.step + 4))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(restored))


def test_nothing_to_restore(tmp_path):
    assert _restore(tmp_path, _config()) is None


def test_an_uncommitted_save_does_not_count(workdir, state, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(workdir / "checkpoints", checkpoints)
    (checkpoints / "4").rename(checkpoints / "4.orbax-checkpoint-tmp")
    (checkpoints / "3").rename(checkpoints / "elsewhere")
    _assert_equal(load_variables(tmp_path / "run", _config().model), state.variables)
    assert int(_restore(tmp_path / "run", _config()).step) == 2
    assert not (checkpoints / "4.orbax-checkpoint-tmp").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, "seed is 0 there and 7 here"),
        ({"steps": 500}, "steps is 600 there and 500 here"),
        ({"name": "other"}, "name is 'demo_nonlocal' there and 'other' here"),
        ({"model.width": 8}, "model.width is 4 there and 8 here"),
        ({"data.batch_size": 8}, "data.batch_size is 32 there and 8 here"),
        ({"optimizer.learning_rate": 0.1}, "learning_rate is 0.4 there and 0.1 here"),
    ],
)
def test_another_run_is_refused(workdir, change, message):
    config = _config()
    config.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=f"holds another run.*\n  .*{message}"):
        _restore(workdir, config)


def test_other_data_are_refused(workdir):
    with pytest.raises(InputError, match="dataset_fingerprint is 'fingerprint' there and 'x' here"):
        _restore(workdir, _config(), "x")


def test_what_leaves_the_parameters_alone_may_change(workdir):
    config = _config()
    config.train.log_every = 1
    config.evaluation.flip = False
    assert int(_restore(workdir, config).step) == 4


@pytest.mark.parametrize("place", [".", "checkpoints/4"])
def test_load_variables(workdir, state, place):
    variables = load_variables(workdir / place, _config().model)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables))
    assert jax.tree.structure(variables) == jax.tree.structure(state.variables)
    _assert_equal(variables, state.variables)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "no such file or directory"),
        ("empty", "no checkpoint in"),
        ("foreign", "no checkpoint in"),
        ("foreign/notes.txt", "neither a directory"),
    ],
)
def test_no_checkpoint_is_refused(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign" / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "foreign" / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=message):
        load_variables(tmp_path / path, _config().model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 8}, r"(?s)does not fit.*of another shape.*is \(4,\), \(8,\) in the model"),
        ({"stage_sizes": (1, 2)}, r"(?s)does not fit.*missing:.*layer2_1"),
        ({"head_kernel_size": 3}, r"(?s)does not fit.*convs_0/conv/kernel is \(1, 1"),
        ({"block_use_scale": False}, r"(?s)is of another model.*block_use_scale is True .* False"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(workdir, change, message):
    model_config = _config().model
    model_config.update(change)
    with pytest.raises(InputError, match=message):
        load_variables(workdir, model_config)


@pytest.mark.parametrize(("name", "file"), [("variables", "_METADATA"), ("metadata", "metadata")])
def test_a_damaged_checkpoint_is_refused(workdir, tmp_path, name, file):
    shutil.copytree(workdir / "checkpoints" / "4", tmp_path / "4")
    (tmp_path / "4" / name / file).write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        load_variables(tmp_path / "4", _config().model)


def test_a_run_goes_on_before_a_damaged_state(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "4"
    (step / "variables" / "_METADATA").write_text("{")
    message = f"cannot read the checkpoint {step}: .*move it away and the run goes on from the one"
    with pytest.raises(InputError, match=message):
        _restore(tmp_path / "run", _config())
    shutil.move(step, tmp_path / "aside")
    assert int(_restore(tmp_path / "run", _config()).step) == 3
