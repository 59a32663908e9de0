"""Video checkpoints of Caffe2, PySlowFast and torchvision, against networks in plain NumPy."""

import functools
import pickle
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from nonlocal_jax import convert, create_model
from nonlocal_jax.errors import InputError
from tests.convert import caffe2_network, python2
from tests.convert.caffe2_network import of_images, random_blobs, training_state
from tests.convert.files import as_mit, in_float64, written
from tests.convert.test_checkpoints import assert_identical
from tests.helpers import random_variables

# The networks that the blobs of ``random_blobs`` belong to.
I3D = {
    "network": "video",
    "num_classes": 5,
    "width": 4,
    "stage_sizes": (1, 2, 2, 1),
    "conv1_frames": 5,
    "conv1_stride": 2,
    "pool1_frames": 2,
    "pool1_stride": 2,
    "pool1_padding": 0,
    "pool2_frames": 2,
    "inflate_at": ("layer1.0", "layer2.0", "layer3.1"),
}
NL_I3D = I3D | {
    "block": "nonlocal",
    "block_at": ("layer2.1", "layer3.0"),
    "block_sub_sample": "before",
}
# As for 128 frames: frozen norms, none in the blocks, groups of frames in res3.
LONG = NL_I3D | {
    "conv1_stride": 1,
    "pool1_frames": 1,
    "pool1_stride": 1,
    "norm": "frozen_batch_norm",
    "block_norm": "none",
    "group_frames": 4,
    "group_at": ("layer2.1",),
}
LONG_NETWORK = {"frame_strides": (1, 1), "pool1": (1, 0)}
# C2D has a kernel of one frame that strides over frames.
C2D = I3D | {"conv1_frames": 1, "inflate_at": ()}
PYSLOWFAST = NL_I3D | {"conv1_stride": 1, "pool1_frames": 1, "pool1_stride": 1, "pool1_padding": 1}

long_blobs = functools.partial(random_blobs, affine=True, block_norm=False)
c2d_blobs = functools.partial(random_blobs, conv1_frames=1, inflated=(), blocks=())


def python3(obj, protocol):
    return pickle.dumps(obj, protocol)


PICKLES = [(write, protocol) for write in (python2.dumps, python3) for protocol in (0, 2)]


def rounded(variables):
    return jax.tree.map(np.float32, variables)


def wide(blobs):
    return {name: np.float64(blob) for name, blob in blobs.items()}


def assert_logits(variables, config, blobs, **network):
    """The network has the logits of the blobs in NumPy."""
    clips = np.random.default_rng(1).standard_normal((2, 16, 64, 64, 3))
    with jax.enable_x64(True):
        actual = jax.jit(create_model(config).apply)(variables, clips)
    expected = [caffe2_network.logits(clip, wide(blobs), **network) for clip in clips]
    actual = np.asarray(actual)
    assert actual.dtype == np.float64
    assert np.abs(actual - expected).max() / np.std(expected) < 1e-10


def test_caffe2(tmp_path):
    blobs = random_blobs()
    path = written(tmp_path / "a.pkl", {"blobs": blobs | training_state(blobs)})
    variables = in_float64(path, NL_I3D)
    assert_logits(variables, NL_I3D, blobs)
    assert_identical(convert.load(path, NL_I3D), rounded(variables))


@pytest.mark.parametrize(("dumps", "protocol"), PICKLES)
def test_caffe2_in_every_pickle(tmp_path, dumps, protocol):
    blobs = random_blobs()
    content = blobs | training_state(blobs) | {"pred_w": blobs["pred_w"][..., None, None, None]}
    content = content if protocol == 0 else {"blobs": content}
    path = written(tmp_path / "a.pkl", content, dumps, protocol)
    assert_identical(convert.load(path, NL_I3D), convert.from_torch(blobs, NL_I3D))


def test_caffe2_affine(tmp_path):
    blobs = long_blobs()
    assert not any(name.endswith(("_rm", "_riv")) for name in blobs)
    path = written(tmp_path / "a.pkl", {"blobs": blobs | training_state(blobs)})
    variables = in_float64(path, LONG)
    assert_logits(variables, LONG, blobs, **LONG_NETWORK, group_frames=4)
    assert_identical(convert.load(path, LONG), rounded(variables))


def test_groups_change_the_result():
    """Otherwise the test above would say nothing about them."""
    clip = np.random.default_rng(1).standard_normal((16, 64, 64, 3))
    evaluate = functools.partial(caffe2_network.logits, clip, wide(long_blobs()), **LONG_NETWORK)
    whole, groups = (evaluate(group_frames=n) for n in (None, 4))
    assert np.abs(whole - groups).max() > 1e-3


def test_caffe2_affine_files_start_a_run(tmp_path, caplog):
    """They are flat, in protocol 0, and without classifier and blocks."""
    blobs = long_blobs(blocks=())
    flat = {name: x for name, x in blobs.items() if not name.startswith("pred_")} | {"lr": 0.00125}
    path = written(tmp_path / "a.pkl", flat, protocol=0)
    for given, missing, flags in (
        ({}, "classifier and no blocks", r"--reinit-head --new-blocks"),
        ({"new_blocks": True}, "classifier", "--reinit-head"),
        ({"reinit_head": True}, "blocks", "--new-blocks"),
    ):
        with pytest.raises(InputError, match=rf"a\.pkl has no {missing} for the .* \({flags} of"):
            convert.load(path, LONG, **given)
    loaded = convert.load(path, LONG, reinit_head=True, new_blocks=True)
    places = ("backbone/layer2_1_block", "backbone/layer3_0_block", "classifier")
    expected = "".join(f"\n  {place}" for place in places)
    assert f"initialized instead of read from {path}:{expected}\n" in caplog.text
    expected = convert.from_torch(long_blobs(), LONG)
    assert flatten_dict(loaded).keys() == flatten_dict(expected).keys()
    # A block without a norm starts as the identity.
    assert not loaded["params"]["backbone"]["layer2_1_block"]["conv_out"]["kernel"].any()
    with pytest.raises(InputError, match="has no heads"):
        convert.load(path, LONG, allow_missing_heads=False)


def test_all_modules_that_are_initialized_are_listed(caplog):
    places = [f"layer{i}.{j}" for i, j in ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0))]
    blobs = {n: x for n, x in long_blobs(blocks=()).items() if not n.startswith("pred_")}
    config = LONG | {"block_at": places}
    convert.from_torch(blobs, config, reinit_head=True, new_blocks=True)
    blocks = [f"backbone/{place.replace('.', '_')}_block" for place in places]
    expected = "".join(f"\n  {module}" for module in (*blocks, "classifier"))
    assert caplog.messages[0].endswith(f":{expected}")


@pytest.mark.parametrize("config", [I3D, C2D])
def test_caffe2_imagenet(tmp_path, config):
    """Kernels of images inflate, also those that span only one frame."""
    clips = random_blobs(blocks=()) if config is I3D else c2d_blobs()
    blobs = of_images(random_blobs(classes=1000, blocks=()))
    path = written(tmp_path / "a.pkl", {"blobs": blobs})
    with pytest.raises(InputError, match=r"num_classes is 1000 [\s\S]*--reinit-head"):
        convert.load(path, config)
    variables = in_float64(path, config, reinit_head=True)
    classifier = variables["params"]["classifier"]
    head = {"pred_w": classifier["kernel"].T, "pred_b": classifier["bias"]}
    expected = caffe2_network.inflated(wide(blobs), clips) | head
    assert_logits(jax.tree.map(np.float64, variables), config, expected)


def as_pyslowfast(blobs):
    """The blobs with the names of PySlowFast."""
    leaves = {"s": "weight", "b": "bias", "w": "weight", "rm": "running_mean", "riv": "running_var"}
    arrays = {}
    for name, blob in blobs.items():
        module, _, leaf = name.rpartition("_")
        for pattern, replacement in (
            (r"conv1", r"s1.pathway0_stem.conv"),
            (r"res_conv1_bn", r"s1.pathway0_stem.bn"),
            (r"pred", r"head.projection"),
            (r"res(\d)_(\d+)_branch1(_bn)?", r"s\1.pathway0_res\2.branch1\3"),
            (r"res(\d)_(\d+)_branch2(\w(_bn)?)", r"s\1.pathway0_res\2.branch2.\3"),
            (r"nonlocal_conv(\d)_(\d+)_bn", r"s\1.pathway0_nonlocal\2.bn"),
            (r"nonlocal_conv(\d)_(\d+)_(\w+)", r"s\1.pathway0_nonlocal\2.conv_\3"),
        ):
            if re.fullmatch(pattern, module):
                arrays[f"{re.sub(pattern, replacement, module)}.{leaves[leaf]}"] = blob
                break
        if leaf == "riv":
            counter = next(reversed(arrays)).replace("running_var", "num_batches_tracked")
            arrays[counter] = np.int64(7)
    return arrays


def test_pyslowfast(tmp_path):
    blobs = random_blobs()
    content = {"epoch": 3, "model_state": as_pyslowfast(blobs), "optimizer_state": {}, "cfg": ""}
    path = written(tmp_path / "a.pyth", content)
    variables = in_float64(path, PYSLOWFAST)
    assert_logits(variables, PYSLOWFAST, blobs, frame_strides=(1, 1), pool1=(1, 1))
    assert_identical(convert.load(path, PYSLOWFAST), rounded(variables))
    assert_identical(convert.from_torch(blobs, PYSLOWFAST), rounded(variables))


def test_torchvision(tmp_path, caplog):
    """A network of another library for images fills the backbone."""
    config = NL_I3D | {"stage_sizes": (1, 1, 1, 1), "block_at": ("layer2.0",)}
    config |= {"inflate_at": ("layer2.0",), "inflate": "3x3x3"}
    images = {"network": "video", "num_classes": 7, "width": 4, "stage_sizes": (1, 1, 1, 1)}
    variables = random_variables(images)
    arrays = as_mit(convert.to_torch(variables, images))
    arrays = {n.removeprefix("module.").removeprefix("base_model."): x for n, x in arrays.items()}
    arrays = {n.replace("new_fc.", "fc."): x for n, x in arrays.items()}
    assert {"conv1.weight", "layer1.0.downsample.0.weight", "fc.weight"} <= arrays.keys()
    path = written(tmp_path / "a.pth", arrays)
    with pytest.raises(InputError, match=r"has no classifier and no blocks for the model; .*"):
        convert.load(path, config)
    loaded = convert.load(path, config, reinit_head=True, new_blocks=True)
    loaded = flatten_dict(loaded, sep="/")
    assert f"{path}:\n  backbone/layer2_0_block\n  classifier\n" in caplog.text
    for name, array in flatten_dict(variables, sep="/").items():
        if "classifier" in name:
            continue
        if loaded[name].ndim > array.ndim:  # inflated
            frames = len(loaded[name])
            array = np.stack([array] * frames) / np.float32(frames)
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    assert loaded["params/backbone/conv1/kernel"].shape == (5, 7, 7, 3, 4)
    assert loaded["params/backbone/layer2_0/conv2/kernel"].shape == (3, 3, 3, 8, 8)

    del arrays["layer2.0.bn1.weight"]
    with pytest.raises(InputError, match=r"1 missing:\n  layer2\.0\.bn1\.weight \(8,\)"):
        convert.from_torch(arrays, config)


def test_a_file_of_something_else_is_not_a_backbone():
    """The error is that it does not fit, not that a flag is missing."""
    with pytest.raises(InputError, match=r"does not fit the model config\n(?s:.*) missing:"):
        convert.from_torch({"roi_head.weight": np.zeros(3, np.float32)}, I3D)


MISTAKES = {
    "missing": (
        {},
        lambda b: b.pop("res3_1_branch2b_bn_riv"),
        ["1 missing:\n  res3_1_branch2b_bn_riv (8,)"],
    ),
    "unexpected": (
        {},
        lambda b: b.update(extra_w=b["conv1_w"]),
        ["1 not in the model:\n  extra_w (4, 3, 5, 7, 7)"],
    ),
    "without blocks": (
        {"blocks": ()},
        None,
        ["block is 'none' in the checkpoint, 'nonlocal' in the config", "--new-blocks"],
    ),
    "other blocks": (
        {"blocks": ("conv3_0", "conv4_0")},
        None,
        ["block_at is ('layer2.0', 'layer3.0') in the checkpoint, ('layer2.1', 'layer3.0')"],
    ),
    "no norm in the blocks": (
        {"block_norm": False},
        None,
        ["block_norm is 'none' in the checkpoint, 'batch_norm' in the config"],
    ),
    "other places of kernels over frames": (
        {"inflated": ("res2_0", "res3_0", "res4_0")},
        None,
        [
            "inflate_at is ('layer1.0', 'layer2.0', 'layer3.0') in the checkpoint",
            "res4_1_branch2a_w is (16, 64, 1, 1, 1), (16, 64, 3, 1, 1) in the model",
        ],
    ),
    "more residual blocks": (
        {"sizes": (1, 3, 2, 1)},
        None,
        ["stage_sizes is (1, 3, 2, 1) in the checkpoint, (1, 2, 2, 1) in the config"],
    ),
    "other classes": ({"classes": 3}, None, ["num_classes is 3", "--reinit-head"]),
    "a bias of another size": (
        {},
        lambda b: b.update(nonlocal_conv3_1_out_b=np.zeros(7, np.float32)),
        ["1 not in the model:\n  nonlocal_conv3_1_out_b (7,)"],
    ),
    "a bias of integers": (
        {},
        lambda b: b.update(nonlocal_conv3_1_out_b=np.zeros(32, np.int32)),
        ["1 not in the model:\n  nonlocal_conv3_1_out_b (32,)"],
    ),
}


@pytest.mark.parametrize(("options", "change", "messages"), MISTAKES.values(), ids=MISTAKES)
def test_errors_use_the_names_of_the_file(options, change, messages):
    blobs = random_blobs(**options)
    if change is not None:
        change(blobs)
    with pytest.raises(InputError) as error:
        convert.from_torch(blobs, NL_I3D)
    for message in messages:
        assert message in str(error.value)


@pytest.mark.parametrize("rename", [dict, as_pyslowfast])
def test_errors_follow_the_source(rename):
    arrays = rename(random_blobs())
    (missing,) = (n for n in arrays if re.search(r"3.*(_g_w|\.conv_g\.weight)$", n))
    shape = arrays.pop(missing).shape
    with pytest.raises(InputError, match=re.escape(f"1 missing:\n  {missing} {shape}\n")):
        convert.from_torch(arrays, NL_I3D)


def test_a_bias_that_the_model_has_is_not_folded():
    """The error does not call it missing."""
    with pytest.raises(InputError) as error:
        convert.from_torch(random_blobs(), NL_I3D | {"block_norm": "none"})
    message = str(error.value)
    assert "block_norm is 'batch_norm' in the checkpoint, 'none' in the config" in message
    assert "8 not in the model:\n  nonlocal_conv3_1_bn_s (32,)" in message
    assert "missing" not in message
