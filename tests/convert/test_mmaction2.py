"""The table of names against the names and shapes of mmaction2's state dicts."""

import numpy as np
import pytest

from configs import video
from nonlocal_jax import convert
from nonlocal_jax.convert import names
from nonlocal_jax.errors import InputError
from tests.convert.files import as_mit
from tests.helpers import random_variables

DEPTHS = (3, 4, 6, 3)
TINY = {
    "network": "video",
    "num_classes": 3,
    "width": 2,
    "stage_sizes": (1, 2),
    "strides": (1, 2),
}
I3D = {"conv1_frames": 5, "inflate_at": ("layer1.0", "layer2.1")}
TSM = {"shift_at": ("layer1.0", "layer2.0", "layer2.1")}
NL = {"block": "nonlocal", "block_at": ("layer2.0",), "block_sub_sample": "after"}


def published(*, inflated, blocks, mode="dot_product", shifted=False, classes=400):
    """Names and shapes of a full-size network, from the description of its layers."""
    shapes = {}

    def conv(name, outputs, inputs, *size, bias=False):
        shapes[f"{name}.weight"] = (outputs, inputs, *size)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name, channels):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (channels,)

    def size(frames, pixels):
        return (pixels, pixels) if shifted else (frames, pixels, pixels)

    conv("backbone.conv1.conv", 64, 3, *size(5, 7))
    norm("backbone.conv1.bn", 64)
    inputs = 64
    for stage, depth in enumerate(DEPTHS, 1):
        width = 32 * 2**stage
        for index in range(depth):
            place = f"layer{stage}.{index}"
            block = f"backbone.{place}" + (".block" if shifted and place in blocks else "")
            net = ".net" if shifted else ""
            conv(f"{block}.conv1.conv{net}", width, inputs, *size(3 if place in inflated else 1, 1))
            conv(f"{block}.conv2.conv", width, width, *size(1, 3))
            conv(f"{block}.conv3.conv", 4 * width, width, *size(1, 1))
            for i, channels in enumerate((width, width, 4 * width), 1):
                norm(f"{block}.conv{i}.bn", channels)
            if index == 0:
                conv(f"{block}.downsample.conv", 4 * width, inputs, *size(1, 1))
                norm(f"{block}.downsample.bn", 4 * width)
            inputs = 4 * width
            if place in blocks:
                block = f"backbone.{place}.non_local_block"
                conv(f"{block}.g.0.conv", inputs // 2, inputs, 1, 1, 1, bias=True)
                if mode != "gaussian":
                    conv(f"{block}.theta.conv", inputs // 2, inputs, 1, 1, 1, bias=True)
                    conv(f"{block}.phi.0.conv", inputs // 2, inputs, 1, 1, 1, bias=True)
                conv(f"{block}.conv_out.conv", inputs, inputs // 2, 1, 1, 1)
                norm(f"{block}.conv_out.bn", inputs)
    conv("cls_head.fc_cls", classes, 2048, bias=True)
    return shapes


ODD = ("layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5")
EVEN = ("layer2.0", "layer2.2", "layer3.0", "layer3.2", "layer3.4")
INFLATED = (
    *("layer1.0", "layer1.1", "layer1.2", "layer2.0", "layer2.2"),
    *("layer3.0", "layer3.2", "layer3.4", "layer4.1"),
)


# The numbers of entries, with the counters of the norms, and of parameters are mmaction2's.
@pytest.mark.parametrize(
    ("experiment", "description", "entries", "parameters"),
    [
        (
            "mmaction2_i3d_nl_dot_product_r50_32f",
            {"inflated": INFLATED, "blocks": ODD},
            378,
            34_578_240,
        ),
        (
            "mmaction2_i3d_nl_gaussian_r50_32f",
            {"inflated": INFLATED, "blocks": ODD, "mode": "gaussian"},
            358,
            30_904_128,
        ),
        (
            "mmaction2_tsm_nl_embedded_gaussian_r50_8f",
            {"inflated": (), "blocks": EVEN, "shifted": True},
            378,
            30_862_400,
        ),
    ],
)
def test_names_and_shapes_of_the_published_networks(experiment, description, entries, parameters):
    expected = published(**description)
    backbone = {name: shape for name, shape in expected.items() if name.startswith("backbone.")}
    counters = sum(name.endswith("running_var") for name in backbone)
    assert len(backbone) + counters == entries
    trained = [shape for name, shape in backbone.items() if ".running_" not in name]
    assert sum(np.prod(shape) for shape in trained) == parameters

    leaves = names.leaves(video.get_config(experiment).model)
    assert {leaf.name: leaf.torch_shape for leaf in leaves} == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # C2D: images
        ({}, {"backbone.conv1.conv.weight": (2, 3, 7, 7), "cls_head.fc_cls.weight": (3, 16)}),
        # SlowOnly: all kernels have a time axis, although few span frames
        (
            {"inflate_at": ("layer2.1",)},
            {
                "backbone.conv1.conv.weight": (2, 3, 1, 7, 7),
                "backbone.layer1.0.conv1.conv.weight": (2, 2, 1, 1, 1),
                "backbone.layer2.1.conv1.conv.weight": (4, 16, 3, 1, 1),
            },
        ),
        (
            {"inflate_at": ("layer2.1",), "inflate": "3x3x3"},
            {
                "backbone.layer2.1.conv1.conv.weight": (4, 16, 1, 1, 1),
                "backbone.layer2.1.conv2.conv.weight": (4, 4, 3, 3, 3),
            },
        ),
        ({"conv1_stride": 2}, {"backbone.conv1.conv.weight": (2, 3, 1, 7, 7)}),
        # NL C2D: only ResNet3d has blocks without shifts
        (
            NL,
            {
                "backbone.layer2.0.conv2.conv.weight": (4, 4, 1, 3, 3),
                "backbone.layer2.0.non_local_block.theta.conv.weight": (8, 16, 1, 1, 1),
            },
        ),
        # TSM with a block behind some of the residual blocks
        (
            {"shift_at": ("layer2.1",), **NL},
            {
                "backbone.layer2.0.block.conv1.conv.weight": (4, 8, 1, 1),
                "backbone.layer2.1.conv1.conv.net.weight": (4, 16, 1, 1),
                "backbone.layer2.0.block.downsample.bn.running_var": (16,),
                "backbone.layer2.0.non_local_block.phi.0.conv.weight": (8, 16, 1, 1, 1),
            },
        ),
        (
            {**NL, "block_sub_sample": False, "block_mode": "concatenation"},
            {
                "backbone.layer2.0.non_local_block.phi.conv.weight": (8, 16, 1, 1, 1),
                "backbone.layer2.0.non_local_block.concat_project.conv.weight": (1, 16, 1, 1),
            },
        ),
        (
            {**NL, "block_norm": "none"},
            {"backbone.layer2.0.non_local_block.conv_out.conv.bias": (16,)},
        ),
        # not in mmaction2
        (
            {"block": "disentangled_nonlocal", "block_at": ("layer2.0",)},
            {"backbone.layer2.0.non_local_block.conv_mask.weight": (1, 16, 1, 1, 1)},
        ),
        (
            {"block": "global_context", "block_at": ("layer2.0",)},
            {"backbone.layer2.0.context_block.channel_add_conv.1.weight": (4, 1, 1)},
        ),
    ],
)
def test_names_of_variants(options, expected):
    shapes = {leaf.name: leaf.torch_shape for leaf in names.leaves(TINY | options)}
    assert {name: shapes.get(name) for name in expected} == expected


@pytest.mark.parametrize("options", [I3D | NL, TSM | NL], ids=["I3D", "TSM"])
def test_export_and_import_are_inverse(tmp_path, options):
    config = TINY | options
    variables = random_variables(config)
    convert.export_torch(tmp_path / "a.pth", variables, config)
    again = convert.to_torch(convert.load(tmp_path / "a.pth", config), config)
    for name, array in convert.to_torch(variables, config).items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_the_backbone_of_an_image_network_is_inflated():
    images = convert.to_torch(random_variables(TINY), TINY)
    backbone = {name: array for name, array in images.items() if name.startswith("backbone.")}
    loaded = convert.from_torch(backbone, TINY | I3D, reinit_head=True)
    loaded = convert.to_torch(loaded, TINY | I3D)
    for name, frames in (("conv1", 5), ("layer2.1.conv1", 3), ("layer2.0.conv1", 1)):
        kernel = f"backbone.{name}.conv.weight"
        expected = np.repeat(images[kernel][:, :, None] / frames, frames, axis=2)
        np.testing.assert_allclose(loaded[kernel], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (TSM, {}, r"shift_at.*backbone\.layer1\.0\.conv1\.conv\.net\.weight"),
        (I3D, {"conv1_frames": 5}, r"inflate_at.*backbone\.layer1\.0\.conv1\.conv\.weight"),
        (NL, TSM | NL, r"shift_at.*backbone\.layer2\.0\.block\.conv1\.bn\."),
        ({}, {"num_classes": 4}, r"num_classes.*cls_head\.fc_cls\.weight"),
    ],
)
def test_errors_name_the_options_and_the_arrays_of_the_file(theirs, ours, expected):
    state_dict = convert.to_torch(random_variables(TINY | theirs), TINY | theirs)
    with pytest.raises(InputError, match=f"(?s){expected}"):
        convert.from_torch(state_dict, TINY | ours)


CAFFE2 = {"pool1_frames": 2, "pool1_padding": 0}


@pytest.mark.parametrize(
    ("options", "lacking"),
    [
        (I3D | NL | {"block_sub_sample": "before"}, "block_sub_sample='before'"),
        (I3D | NL | {"block_axes": "time", "block_sub_sample": False}, "block_axes='time'"),
        (I3D | NL | {"group_frames": 4, "group_at": ("layer2.0",)}, "group_frames=4"),
        (I3D | CAFFE2, "pool1_frames=2, pool1_padding=0"),
        (TSM | {"pool1_padding": 0}, "pool1_padding=0"),
        (TSM | {"shift": "past"}, "shift='past'"),
    ],
)
def test_networks_that_mmaction2_lacks_are_not_exported(tmp_path, options, lacking):
    """The file would load as a network of mmaction2 that computes another function."""
    config = TINY | options
    variables = random_variables(config)
    with pytest.raises(InputError, match=f"no network with PyTorch's names has {lacking}, so"):
        convert.export_torch(tmp_path / "a.pth", variables, config)
    convert.save(tmp_path / "a.safetensors", variables, config)


def test_c2d_has_no_padding_in_pool1():
    convert.to_torch(random_variables(TINY), TINY | {"pool1_padding": 0})


@pytest.mark.parametrize("rename", [dict, as_mit])
def test_blocks_that_the_source_lacks_are_not_read(rename):
    config = TINY | TSM | NL | {"block_sub_sample": False}
    state_dict = rename(convert.to_torch(random_variables(config), config))
    before = config | {"block_sub_sample": "before"}
    message = "block_sub_sample is 'before' in the config, which no block with these names has"
    with pytest.raises(InputError, match=message):
        convert.from_torch(state_dict, before)
    convert.from_torch(state_dict, before, new_blocks=True)
