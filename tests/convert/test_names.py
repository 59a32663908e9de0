"""The table of names against the names and shapes of mmsegmentation's state dicts."""

import jax
import numpy as np
import pytest

from configs import segmentation
from nonlocal_jax.convert import names
from tests.helpers import TINY


def published(block, *, depths=(3, 4, 6, 3), classes=19):
    """Names and shapes of a full-size network, from the description of its layers."""
    shapes = {}

    def conv(name, outputs, inputs, size=1, *, bias=False):
        shapes[f"{name}.weight"] = (outputs, inputs, size, size)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name, channels):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def conv_module(name, outputs, inputs, size=3):
        conv(f"{name}.conv", outputs, inputs, size)
        norm(f"{name}.bn", outputs)

    for i, (inputs, outputs) in enumerate([(3, 32), (32, 32), (32, 64)]):
        conv(f"backbone.stem.{3 * i}", outputs, inputs, 3)
        norm(f"backbone.stem.{3 * i + 1}", outputs)
    inputs = 64
    for stage, depth in enumerate(depths, 1):
        width = 32 * 2**stage
        for index in range(depth):
            place = f"backbone.layer{stage}.{index}"
            conv(f"{place}.conv1", width, inputs)
            conv(f"{place}.conv2", width, width, 3)
            conv(f"{place}.conv3", 4 * width, width)
            for i, channels in enumerate((width, width, 4 * width), 1):
                norm(f"{place}.bn{i}", channels)
            if index == 0:
                conv(f"{place}.downsample.0", 4 * width, inputs)
                norm(f"{place}.downsample.1", 4 * width)
            inputs = 4 * width

    conv("decode_head.conv_seg", classes, 512, bias=True)
    conv_module("decode_head.convs.0", 512, 2048)
    conv_module("decode_head.convs.1", 512, 512)
    conv_module("decode_head.conv_cat", 512, 2560)
    if block == "gc_block":
        conv("decode_head.gc_block.conv_mask", 1, 512, bias=True)
        conv("decode_head.gc_block.channel_add_conv.0", 128, 512, bias=True)
        conv("decode_head.gc_block.channel_add_conv.3", 512, 128, bias=True)
        for leaf in ("weight", "bias"):
            shapes[f"decode_head.gc_block.channel_add_conv.1.{leaf}"] = (128, 1, 1)
    else:
        for projection in ("g", "theta", "phi"):
            conv(f"decode_head.{block}.{projection}.conv", 256, 512, bias=True)
        conv_module(f"decode_head.{block}.conv_out", 512, 256, 1)
        if block == "dnl_block":
            conv("decode_head.dnl_block.conv_mask", 1, 512, bias=True)
    conv("auxiliary_head.conv_seg", classes, 256, bias=True)
    conv_module("auxiliary_head.convs.0", 256, 1024)
    return shapes


def without_counters(shapes):
    return {k: v for k, v in shapes.items() if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("experiment", "block", "entries", "counters", "options"),
    [
        ("nonlocal_r50-d8_512x1024_40k_cityscapes", "nl_block", 370, 60, {}),
        ("dnl_r50-d8_512x1024_40k_cityscapes", "dnl_block", 372, 60, {}),
        ("gcnet_r50-d8_512x1024_40k_cityscapes", "gc_block", 366, 59, {}),
        ("nonlocal_r101-d8_512x512_80k_ade20k", "nl_block", 676, 111, {"classes": 150}),
    ],
)
def test_names_and_shapes_of_the_published_networks(experiment, block, entries, counters, options):
    depths = (3, 4, 23, 3) if "r101" in experiment else (3, 4, 6, 3)
    expected = published(block, depths=depths, **options)
    assert len(expected) == entries
    assert len(expected) - len(without_counters(expected)) == counters

    leaves = names.leaves(segmentation.get_config(experiment).model)
    assert {leaf.name: leaf.torch_shape for leaf in leaves} == without_counters(expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"stem": "v1"}, {"backbone.conv1.weight": (8, 3, 7, 7), "backbone.bn1.weight": (8,)}),
        (
            # a plugin of mmdetection and GCNet
            {"block": "global_context", "block_at": ("layer2.0",)},
            {
                "backbone.layer2.0.context_block.conv_mask.weight": (1, 64, 1, 1),
                "backbone.layer2.0.context_block.channel_add_conv.0.weight": (16, 64, 1, 1),
                "backbone.layer2.0.context_block.channel_add_conv.1.bias": (16, 1, 1),
                "backbone.layer2.0.context_block.channel_add_conv.3.weight": (64, 16, 1, 1),
            },
        ),
        (
            {"block_at": ("layer1.0",), "block_position": "after_residual"},
            {
                "backbone.layer1.0.nonlocal_block.g.conv.weight": (16, 32, 1, 1),
                "backbone.layer1.0.nonlocal_block.conv_out.bn.running_var": (32,),
            },
        ),
        (
            # mmcv puts a projection and its pooling into a sequence
            {"block_sub_sample": True},
            {
                "decode_head.nl_block.g.0.conv.bias": (4,),
                "decode_head.nl_block.phi.0.conv.weight": (4, 8, 1, 1),
                "decode_head.nl_block.theta.conv.weight": (4, 8, 1, 1),
            },
        ),
        ({"block_sub_sample": "before"}, {"decode_head.nl_block.phi.conv.weight": (4, 8, 1, 1)}),
        (
            {"block_mode": "concatenation"},
            {"decode_head.nl_block.concat_project.conv.weight": (1, 8, 1, 1)},
        ),
        (
            {"block": "global_context", "block_fusion": ("multiply",)},
            {"decode_head.gc_block.channel_mul_conv.1.weight": (2, 1, 1)},
        ),
        (
            # the authors' code
            {"block": "disentangled_nonlocal", "block_output": "factor"},
            {
                "decode_head.dnl_block.gamma": (1,),
                "decode_head.dnl_block.conv_value.weight": (8, 8, 1, 1),
            },
        ),
        ({"block": "none"}, {"decode_head.conv_cat.conv.weight": (8, 72, 1, 1)}),
    ],
)
def test_names_of_variants(options, expected):
    shapes = {leaf.name: leaf.torch_shape for leaf in names.leaves(TINY | options)}
    assert {name: shapes.get(name) for name in expected} == expected


@pytest.mark.parametrize("block", ["nonlocal", "disentangled_nonlocal", "global_context"])
def test_layouts_are_inverse_and_names_unique(block):
    leaves = names.leaves(TINY | {"block": block, "stem": "v1"})
    assert len({leaf.name for leaf in leaves}) == len({leaf.path for leaf in leaves}) == len(leaves)
    for leaf in leaves:
        array = np.arange(np.prod(leaf.shape)).reshape(leaf.shape)
        there = leaf.to_torch(array)
        assert there.shape == leaf.torch_shape, leaf
        np.testing.assert_array_equal(leaf.to_flax(there), array)


def test_blocks_in_the_head_and_in_the_backbone():
    config = TINY | {"stage_sizes": (1, 2), "block_at": ("layer2.1",)}
    in_torch = {leaf.name for leaf in names.leaves(config)}
    assert "decode_head.nl_block.conv_out.conv.weight" in in_torch
    assert "backbone.layer2.1.nonlocal_block.conv_out.conv.weight" in in_torch


@pytest.mark.parametrize(
    ("shape", "rank", "torch_shape", "subscripts"),
    [
        ((5, 7, 2, 3), 4, (3, 2, 5, 7), "hwio->oihw"),
        ((4, 5, 7, 2, 3), 5, (3, 2, 4, 5, 7), "thwio->oithw"),
        ((2, 3), 2, (3, 2), "io->oi"),
        # axes of length one behind the channels
        ((2, 3), 4, (3, 2, 1, 1), "io->oi"),
        ((5, 7, 2, 3), 5, (3, 2, 1, 5, 7), "hwio->oihw"),
        ((3,), 3, (3, 1, 1), "c->c"),
        ((3,), 1, (3,), "c->c"),
    ],
)
def test_layouts(shape, rank, torch_shape, subscripts):
    leaf = names.Leaf("params/x/kernel", "x.weight", shape, rank)
    assert leaf.torch_shape == torch_shape
    array = np.random.default_rng(0).normal(size=shape)
    in_torch = leaf.to_torch(array)
    assert in_torch.shape == torch_shape
    np.testing.assert_array_equal(in_torch.reshape(-1), np.einsum(subscripts, array).reshape(-1))
    np.testing.assert_array_equal(leaf.to_flax(in_torch), array)
    np.testing.assert_array_equal(leaf.inflate(in_torch), in_torch)


def test_a_kernel_of_images_is_inflated_to_clips():
    rng = np.random.default_rng(0)
    clips = names.Leaf("params/x/kernel", "x.weight", (3, 5, 5, 4, 6), rank=5)
    images = names.Leaf("params/x/kernel", "x.weight", (5, 5, 4, 6), rank=4)
    kernel = rng.normal(size=images.torch_shape).astype(np.float32)
    inflated = np.float32(clips.inflate(kernel))
    assert inflated.shape == clips.torch_shape
    np.testing.assert_array_equal(
        clips.to_flax(inflated), np.stack([images.to_flax(kernel) / 3] * 3)
    )

    # a clip of equal frames has the features of a frame
    frame = rng.normal(size=(1, 8, 8, 4)).astype(np.float32)
    clip = np.stack([frame] * 3, axis=1)
    expected = jax.lax.conv_general_dilated(
        frame, images.to_flax(kernel), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    features = jax.lax.conv_general_dilated(
        clip,
        clips.to_flax(inflated),
        (1, 1, 1),
        "VALID",
        dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
    )
    np.testing.assert_allclose(features[:, 0], expected, atol=1e-4)

    # the 1x1 convolution of images becomes nn.Dense
    dense = names.Leaf("params/x/kernel", "x.weight", (4, 6), rank=5)
    pointwise = kernel[:, :, :1, :1]
    np.testing.assert_array_equal(dense.to_flax(dense.inflate(pointwise)), pointwise[..., 0, 0].T)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((6, 4, 3, 3), np.float32),  # of another size
        np.zeros((6, 4, 5, 5), np.int32),  # not a weight
        np.zeros((6, 4, 1, 5, 5), np.float32),  # has a time axis already
    ],
)
def test_other_arrays_are_not_inflated(array):
    leaf = names.Leaf("params/x/kernel", "x.weight", (3, 5, 5, 4, 6), rank=5)
    assert leaf.inflate(array) is array
