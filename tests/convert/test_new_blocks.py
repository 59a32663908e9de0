"""Blocks that are initialized instead of read: asked for, listed, and nothing else may differ."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import video
from nonlocal_jax import convert
from nonlocal_jax.convert import _fit as fit
from nonlocal_jax.convert import names
from nonlocal_jax.errors import InputError
from tests.convert import test_video_sources as caffe2
from tests.convert.files import as_mit
from tests.convert.test_mit_tsm import NL_TSM, TSM
from tests.convert.test_work_directories import write_steps
from tests.helpers import TINY, random_variables

# As in mmaction2, so that they can be exported.
I3D = caffe2.I3D | {"pool1_frames": 1, "pool1_padding": 1}
NL_I3D = caffe2.NL_I3D | I3D | {"block_sub_sample": "after"}
# For longer clips.
LONG = NL_I3D | {
    "norm": "frozen_batch_norm",
    "block_norm": "none",
    "group_frames": 4,
    "group_at": ("layer2.1",),
}
GC = TINY | {"block": "global_context", "block_at": ("layer1.0",), "block_in_head": False}
BLOCKS_OF_I3D = ("backbone/layer2_1_block", "backbone/layer3_0_block")


def save(path, variables, config):
    """Saves the variables in the format that the end of the path says."""
    if path.suffix == ".pth":
        convert.export_torch(path, variables, config)
    elif path.suffix == ".safetensors":
        convert.save(path, variables, config)
    else:
        write_steps(path, lambda _: variables, config)


def assert_new_blocks(loaded, config, old):
    """What is not in a block is the old, and the rest is not."""
    loaded, old = (flatten_dict(variables, sep="/") for variables in (loaded, old))
    assert {path: x.shape for path, x in loaded.items()} == names.shapes(config)
    for path, array in loaded.items():
        kept = path in old and np.array_equal(array, old[path])
        assert kept != fit.is_in_block(path), path


@pytest.mark.parametrize(
    ("theirs", "ours", "listed", "name"),
    [
        (TINY | {"block": "none"}, TINY, ("decode_head/block",), "a.pth"),
        (TINY, GC, ("backbone/layer1_0/block",), "a.safetensors"),
        (I3D, LONG, BLOCKS_OF_I3D, "a.safetensors"),
        (NL_I3D, LONG, BLOCKS_OF_I3D, "run"),
        (NL_I3D, LONG, BLOCKS_OF_I3D, "a.pth"),
        # mmaction2's names of TSM depend on the places of the blocks.
        (TSM, NL_TSM, ("backbone/layer2_0_block", "backbone/layer3_0_block"), "a.pth"),
        (NL_TSM, NL_TSM | {"block_at": ("layer3.0",)}, ("backbone/layer3_0_block",), "a.pth"),
    ],
)
def test_blocks_are_initialized(tmp_path, caplog, theirs, ours, listed, name):
    path, old = tmp_path / name, random_variables(theirs)
    save(path, old, theirs)
    with pytest.raises(InputError, match="new_blocks=True"):
        convert.load(path, ours)
    loaded = convert.load(path, ours, new_blocks=True)
    assert_new_blocks(loaded, ours, old)
    lines = "".join(f"\n  {line}" for line in listed)
    assert caplog.text.count("initialized instead of read") == 1
    assert caplog.text.endswith(f"initialized instead of read from {path}:{lines}\n")


def test_blocks_of_files_with_other_names():
    old = random_variables(TSM)
    arrays = as_mit(convert.to_torch(old, TSM))
    assert_new_blocks(convert.from_torch(arrays, NL_TSM, new_blocks=True), NL_TSM, old)
    gc = TSM | {"block": "global_context", "block_at": ("layer1.0",)}
    assert_new_blocks(convert.from_torch(arrays, gc, new_blocks=True), gc, old)
    with pytest.raises(InputError) as error:
        convert.from_torch(arrays, gc)
    assert "block is 'none' in the checkpoint" in str(error.value)


def test_blocks_without_a_place_are_refused():
    arrays = convert.to_torch(random_variables(NL_TSM), NL_TSM)
    with pytest.raises(InputError, match=r"the model has no blocks: .* use a config with") as error:
        convert.from_torch(arrays, TSM)
    assert "new_blocks" not in str(error.value)


def test_a_charades_network_starts_from_kinetics(tmp_path, caplog):
    old, config = random_variables(LONG), LONG | {"num_classes": 157}
    convert.save(tmp_path / "a.safetensors", old, LONG)
    with pytest.raises(InputError, match=r"(?s)num_classes is 5 .*--reinit-head"):
        convert.load(tmp_path / "a.safetensors", config)
    loaded = convert.load(tmp_path / "a.safetensors", config, reinit_head=True)
    assert loaded["params"]["classifier"]["kernel"].shape == (128, 157)
    np.testing.assert_array_equal(
        loaded["params"]["backbone"]["layer2_1_block"]["conv_out"]["bias"],
        old["params"]["backbone"]["layer2_1_block"]["conv_out"]["bias"],
    )
    assert caplog.text.endswith(":\n  classifier\n")


@pytest.mark.parametrize(
    ("theirs", "ours", "asked"),
    [
        ("i3d_r50_baseline_32f", "i3d_r50_baseline_128f", ()),
        ("i3d_r50_baseline_32f", "nl_i3d_r50_5block_128f", ("new_blocks",)),
        ("nl_i3d_r50_5block_32f", "nl_i3d_r50_5block_128f", ("new_blocks",)),
        ("i3d_r101_baseline_128f", "charades_i3d_r101_128f", ("reinit_head",)),
        ("nl_i3d_r101_5block_128f", "charades_nl_i3d_r101_128f", ("reinit_head",)),
        ("c2d_r50_baseline_32f", "nl_c2d_r50_5block_32f", ("new_blocks",)),
        ("c2d_r50_baseline_32f", "gc_c2d_r50_5block_32f", ("new_blocks",)),
        ("mmaction2_tsm_r50_8f", "mmaction2_tsm_nl_gaussian_r50_8f", ("new_blocks",)),
    ],
)
def test_the_experiments_start_from_each_other(theirs, ours, asked):
    """They differ in nothing but what the flags initialize, and need these flags."""
    theirs, ours = (video.get_config(name).model for name in (theirs, ours))
    assert fit.config_differences(theirs, ours, **dict.fromkeys(asked, True)) == []
    assert bool(fit.config_differences(theirs, ours)) == bool(asked)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_both_the_classifier_and_the_blocks(tmp_path, caplog, name):
    save(tmp_path / name, random_variables(I3D), I3D)
    config = NL_I3D | {"num_classes": 3}
    for options in ({"reinit_head": True}, {"new_blocks": True}):
        with pytest.raises(InputError, match="does not fit"):
            convert.load(tmp_path / name, config, **options)
    convert.load(tmp_path / name, config, reinit_head=True, new_blocks=True)
    assert caplog.text.endswith(
        ":\n  backbone/layer2_1_block\n  backbone/layer3_0_block\n  classifier\n"
    )


@pytest.mark.parametrize(
    ("theirs", "ours", "option"),
    [
        (I3D, LONG | {"conv1_stride": 1}, "conv1_stride"),
        (I3D, LONG | {"pool1_padding": 0}, "pool1_padding"),
        (TSM, NL_TSM | {"shift": "past"}, "shift"),
        (TINY | {"block": "none"}, TINY | {"align_corners": True}, "align_corners"),
    ],
)
def test_any_other_difference_is_refused(tmp_path, theirs, ours, option):
    convert.save(tmp_path / "a.safetensors", random_variables(theirs), theirs)
    with pytest.raises(InputError, match=rf"does not fit the model config\n{option} is .*\nuse"):
        convert.load(tmp_path / "a.safetensors", ours, new_blocks=True)


@pytest.mark.parametrize(
    ("option", "value"),
    [("group_frames", 2), ("group_at", ("layer3.0",)), ("block_use_scale", False)],
)
def test_blocks_that_are_read_must_be_the_same(tmp_path, option, value):
    convert.save(tmp_path / "a.safetensors", random_variables(LONG), LONG)
    with pytest.raises(InputError, match=rf"does not fit the model config\n{option} is "):
        convert.load(tmp_path / "a.safetensors", LONG | {option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("block_norm", "frozen_batch_norm"),
        ("norm_group_size", 8),
        ("head_std", 0.1),
        ("dropout_per_frame", True),
    ],
)
def test_options_of_training_may_differ(option, value):
    assert fit.config_differences(NL_I3D, NL_I3D | {option: value}) == []
    assert fit.config_differences(NL_I3D | {option: value}, NL_I3D) == []


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_model_without_blocks_has_no_new_blocks(tmp_path, name):
    save(tmp_path / name, random_variables(NL_I3D), NL_I3D)
    with pytest.raises(InputError, match="new_blocks is set, but the model has no blocks"):
        convert.load(tmp_path / name, I3D, new_blocks=True)
