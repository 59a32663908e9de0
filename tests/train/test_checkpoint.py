import shutil

import jax
import numpy as np
import pytest

from configs import segmentation
from nonlocal_jax.errors import InputError
from nonlocal_jax.train import Checkpoints, create_experiment, create_state
from nonlocal_jax.train.state import abstract_state
from tests.helpers import one_device


def _config():
    config = segmentation.get_config("demo_nonlocal")
    config.model.update(width=4, head_channels=8, auxiliary_channels=8)
    config.data.crop = (16, 16)
    return config


@pytest.fixture(scope="module")
def state():
    return create_state(create_experiment(_config()), one_device())


@pytest.fixture(scope="module")
def workdir(state, tmp_path_factory):
    """A work directory with steps 2, 3 and 4; 0 and 1 were dropped."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir, _config(), "fingerprint") as checkpoints:
        for step in range(5):
            checkpoints.save(state.replace(step=state.step + step))
    return workdir


def _restore(workdir, config, fingerprint="fingerprint"):
    target = abstract_state(create_experiment(config), one_device())
    with Checkpoints(workdir, config, fingerprint) as checkpoints:
        return checkpoints.restore(target)


def _assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_the_last_states_come_back_bit_for_bit(workdir, state):
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "3", "4"]
    restored = _restore(workdir, _config())
    assert int(restored.step) == 4
    _assert_equal(restored, state.replace(step=state.step + 4))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(restored))


def test_nothing_to_restore(tmp_path):
    assert _restore(tmp_path, _config()) is None


def test_an_uncommitted_save_does_not_count(workdir, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(workdir / "checkpoints", checkpoints)
    (checkpoints / "4").rename(checkpoints / "4.orbax-checkpoint-tmp")
    (checkpoints / "3").rename(checkpoints / "elsewhere")
    assert int(_restore(tmp_path / "run", _config()).step) == 2
    assert not (checkpoints / "4.orbax-checkpoint-tmp").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, "seed is 0 in the checkpoint, 7 in the config"),
        ({"steps": 500}, "steps is 600 in the checkpoint, 500 in the config"),
        ({"name": "other"}, "name is 'demo_nonlocal' in the checkpoint, 'other' in the config"),
        ({"model.width": 8}, "model.width is 4 in the checkpoint, 8 in the config"),
        ({"data.batch_size": 8}, "data.batch_size is 32 in the checkpoint, 8 in the config"),
        (
            {"optimizer.learning_rate": 0.1},
            "learning_rate is 0.4 in the checkpoint, 0.1 in the config",
        ),
    ],
)
def test_another_run_is_refused(workdir, change, message):
    config = _config()
    config.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=f"belongs to another run.*\n  .*{message}"):
        _restore(workdir, config)


def test_other_data_are_refused(workdir):
    with pytest.raises(InputError, match="the training data are not those of the checkpoint"):
        _restore(workdir, _config(), "x")


def test_what_leaves_the_parameters_alone_may_change(workdir):
    config = _config()
    config.train.log_every = 1
    config.evaluation.flip = False
    config.recipe = None
    assert int(_restore(workdir, config).step) == 4


def test_a_run_goes_on_before_a_damaged_state(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "4"
    (step / "variables" / "_METADATA").write_text("{")
    message = (
        f"cannot read the checkpoint {step}: .*move it out of the directory to resume from the one"
    )
    with pytest.raises(InputError, match=message):
        _restore(tmp_path / "run", _config())
    shutil.move(step, tmp_path / "aside")
    assert int(_restore(tmp_path / "run", _config()).step) == 3
