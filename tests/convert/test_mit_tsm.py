"""Checkpoints of TSM's authors (MIT): the logits of mmaction2's networks with MIT's names."""

import functools

import jax
import narrow_video
import numpy as np
import pytest

from nonlocal_jax import convert, create_model
from tests.convert.files import as_mit, in_float64, written
from tests.helpers import random_variables
from tests.models.test_mmaction2_golden import read

TSM = {
    "network": "video",
    "num_classes": 5,
    "width": 4,
    "stage_sizes": (1, 2, 1, 1),
    "shift_at": ("layer1.0", "layer2.0", "layer2.1", "layer4.0"),
}
NL_TSM = TSM | {
    "block": "nonlocal",
    "block_at": ("layer2.0", "layer3.0"),
    "block_sub_sample": True,
    "block_use_scale": False,
}


@pytest.mark.parametrize("config", [TSM, NL_TSM, NL_TSM | {"block_sub_sample": False}])
def test_mit(tmp_path, config):
    variables = random_variables(config)
    arrays = as_mit(convert.to_torch(variables, config))
    assert {"module.base_model.conv1.weight", "module.new_fc.bias"} <= arrays.keys()
    if config is NL_TSM:
        inside = "module.base_model.layer2.0"
        assert {f"{inside}.block.conv1.net.weight", f"{inside}.nl.g.0.bias"} <= arrays.keys()
    path = written(tmp_path / "a.pth", {"state_dict": arrays, "epoch": 50})
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12),
        in_float64(path, config),
        variables,
    )


@pytest.mark.parametrize("name", [name for name in narrow_video.NETWORKS if "_tsm_" in name])
@pytest.mark.usefixtures("x64")
def test_logits_of_mmaction2(tmp_path, name):
    """The biases in front of the blocks' norms are added to the running means as well."""
    config, arrays, golden = read(name)
    path = written(tmp_path / "a.pth", {"state_dict": as_mit(arrays)})
    variables = in_float64(path, config.model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float64")}
    clips = narrow_video.clips(name)
    logits = jax.jit(create_model(config.model).apply)(variables, clips)
    assert np.max(np.abs(logits - golden["logits"])) < 1e-6 * np.std(golden["logits"])
