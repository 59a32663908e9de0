"""Batches that fit the groups of examples that are normalized together."""

import pytest

from nonlocal_jax.configs import video
from nonlocal_jax.errors import InputError
from nonlocal_jax.sharding import make_mesh
from nonlocal_jax.train import create_experiment
from tests.helpers import one_device


def _check(batch_size, accumulate, *, name="nl_i3d_r50_5block_32f", **model):
    config = video.get_config(name)
    config.model.update(norm_group_size=8, **model)
    config.data.batch_size = batch_size
    config.train.accumulate = accumulate
    create_experiment(config).check_batch(one_device())


@pytest.mark.parametrize(("batch_size", "accumulate"), [(40, 4), (4, 4), (12, 1)])
def test_batches_that_are_no_multiple_of_the_groups_are_refused(batch_size, accumulate):
    micro = batch_size // accumulate
    message = (
        rf"^data.batch_size={batch_size} and train.accumulate={accumulate} give batches of {micro},"
        rf" .* of model.norm_group_size=8; use a multiple of {8 * accumulate} for data.batch_size"
    )
    with pytest.raises(InputError, match=message):
        _check(batch_size, accumulate)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "options"),
    [
        (32, 4, {}),
        (4, 1, {}),
        (4, 4, {"norm": "frozen_batch_norm", "block_norm": "none"}),
        (4, 4, {"norm": "frozen_batch_norm", "name": "i3d_r50_baseline_32f"}),
    ],
)
def test_whole_groups_one_small_batch_and_frozen_norms_fit(batch_size, accumulate, options):
    _check(batch_size, accumulate, **options)


def test_a_mesh_is_no_shardings():
    experiment = create_experiment(video.get_config("i3d_r50_baseline_32f"))
    with pytest.raises(InputError, match=r"shardings is of type Mesh; use .*Shardings\(mesh\)$"):
        experiment.check_batch(make_mesh())
