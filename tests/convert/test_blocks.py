"""The state dict of one block of PyTorch becomes the variables of one block, and back."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from nonlocal_jax import convert
from nonlocal_jax.blocks import (
    BatchNorm,
    DisentangledNonLocalBlock,
    GlobalContextBlock,
    NonLocalBlock,
)
from nonlocal_jax.convert import _torch_file as torch_file
from nonlocal_jax.errors import InputError

C = 8


def arrays(shapes):
    rng = np.random.default_rng(0)
    return {
        name: np.asarray(rng.uniform(0.5, 1.5, shape), np.float32) for name, shape in shapes.items()
    }


def conv(name, outputs, inputs, ndim=2, *, bias=True):
    shapes = {f"{name}.weight": (outputs, inputs, *[1] * ndim)}
    return shapes | ({f"{name}.bias": (outputs,)} if bias else {})


def non_local(*, ndim=2, mode="embedded_gaussian", pooled="", norm=True, channels=C):
    """Names and shapes in mmcv's NonLocal1d, 2d and 3d."""
    width = max(channels // 2, 1)
    shapes = conv(f"g{pooled}.conv", width, channels, ndim)
    shapes |= conv("conv_out.conv", channels, width, ndim, bias=not norm)
    if norm:
        leaves = ("weight", "bias", "running_mean", "running_var")
        shapes |= {f"conv_out.bn.{leaf}": (channels,) for leaf in leaves}
    if mode != "gaussian":
        shapes |= conv("theta.conv", width, channels, ndim)
        shapes |= conv(f"phi{pooled}.conv", width, channels, ndim)
    if mode == "concatenation":
        shapes |= conv("concat_project.conv", 1, 2 * width, bias=False)
    return arrays(shapes)


def context(*transforms, attention=True):
    """Names and shapes in mmcv's ContextBlock of ratio 1/4."""
    shapes = conv("conv_mask", 1, C) if attention else {}
    for name in transforms:
        shapes |= conv(f"{name}.0", C // 4, C) | conv(f"{name}.3", C, C // 4)
        shapes |= {f"{name}.1.weight": (C // 4, 1, 1), f"{name}.1.bias": (C // 4, 1, 1)}
    return arrays(shapes)


BLOCKS = {
    "1d": (NonLocalBlock(), non_local(ndim=1), 1),
    "2d": (NonLocalBlock(), non_local(), 2),
    "3d": (NonLocalBlock(axes="space"), non_local(ndim=3), 3),
    "one channel": (NonLocalBlock(), non_local(channels=1), 2),
    "gaussian": (NonLocalBlock(mode="gaussian"), non_local(mode="gaussian"), 2),
    "pooled gaussian": (
        NonLocalBlock(mode="gaussian", sub_sample="after"),
        non_local(mode="gaussian", pooled=".0"),
        2,
    ),
    # Only the number of channels in the file fits these attributes.
    "cudnn": (
        NonLocalBlock(implementation="cudnn", norm=functools.partial(nn.GroupNorm, num_groups=4)),
        {name: x for name, x in non_local().items() if "running" not in name},
        2,
    ),
    "dot product": (NonLocalBlock(mode="dot_product", norm=None), non_local(norm=False), 2),
    "concatenation": (
        NonLocalBlock(mode="concatenation", sub_sample=True),
        non_local(mode="concatenation", pooled=".0", ndim=3),
        3,
    ),
    "pooled before": (NonLocalBlock(sub_sample="before"), non_local(), 2),
    "disentangled": (
        DisentangledNonLocalBlock(norm=functools.partial(BatchNorm, use_running_average=True)),
        non_local() | arrays(conv("conv_mask", 1, C)),
        2,
    ),
    "authors' disentangled": (
        DisentangledNonLocalBlock(output="factor", sub_sample="before", axis_name="context"),
        arrays(
            conv("conv_query", C // 2, C)
            | conv("conv_key", C // 2, C)
            | conv("conv_value", C, C, bias=False)
            | conv("conv_mask", 1, C)
            | {"gamma": (1,)}
        ),
        2,
    ),
    "global context": (GlobalContextBlock(), context("channel_add_conv"), 2),
    "both": (
        GlobalContextBlock(fusion=("add", "multiply")),
        context("channel_add_conv", "channel_mul_conv"),
        2,
    ),
    "average": (GlobalContextBlock(pooling="average"), context("channel_add_conv", attention=0), 2),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_variables_are_those_of_the_block(name):
    block, state_dict, ndim = BLOCKS[name]
    variables = convert.block_from_torch(state_dict, block)
    channels = max(max(x.shape) for x in state_dict.values())
    if name == "cudnn":
        block = block.clone(implementation="auto")
    expected = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, 2, 2, 2, channels)))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), variables) == jax.tree.map(
        lambda x: (x.shape, x.dtype), dict(expected)
    )
    back = convert.block_to_torch(variables, block, ndim)
    assert back.keys() == state_dict.keys()
    for key, array in state_dict.items():
        np.testing.assert_array_equal(back[key], array, strict=True)


def test_the_layout_of_a_non_local_block():
    state_dict = non_local(pooled=".0", mode="concatenation")
    block = NonLocalBlock(mode="concatenation", sub_sample=True)
    variables = convert.block_from_torch(state_dict, block)
    expected = {
        name: {
            "kernel": state_dict[f"{torch}.conv.weight"][:, :, 0, 0].T,
            "bias": state_dict[f"{torch}.conv.bias"],
        }
        for name, torch in {"theta": "theta", "phi": "phi.0", "g": "g.0"}.items()
    }
    bn = {
        ours: state_dict[f"conv_out.bn.{theirs}"]
        for ours, theirs in {
            "scale": "weight",
            "bias": "bias",
            "mean": "running_mean",
            "var": "running_var",
        }.items()
    }
    expected |= {
        "conv_out": {"kernel": state_dict["conv_out.conv.weight"][:, :, 0, 0].T},
        "concat_project": state_dict["concat_project.conv.weight"][:, :, 0, 0].T,
        "norm": {"scale": bn["scale"], "bias": bn["bias"]},
    }
    jax.tree.map(np.testing.assert_array_equal, variables["params"], expected)
    statistics = {"norm": {"mean": bn["mean"], "var": bn["var"]}}
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], statistics)


def test_gradients_have_pytorchs_names():
    block, state_dict, _ = BLOCKS["2d"]
    params = convert.block_from_torch(state_dict, block)["params"]
    gradients = convert.block_to_torch({"params": params}, block)
    assert gradients.keys() == {name for name in state_dict if "running" not in name}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_block_of_a_network_is_loaded(tmp_path, suffix):
    path, (block, state_dict, _) = tmp_path / f"a{suffix}", BLOCKS["2d"]
    network = {f"module.decode_head.nl_block.{name}": x for name, x in state_dict.items()}
    network["module.decode_head.nl_block.conv_out.bn.num_batches_tracked"] = np.zeros((), np.int64)
    network["module.backbone.conv1.weight"] = np.zeros((4, 3, 7, 7), np.float32)
    if suffix == ".pth":
        torch_file.write(path, {"state_dict": network})
    else:
        safetensors.numpy.save_file(network, path)
    loaded = convert.load_block(path, block, "decode_head.nl_block.")
    jax.tree.map(np.testing.assert_array_equal, loaded, convert.block_from_torch(state_dict, block))

    for prefix in ("", "decode_head.nl_block", "auxiliary_head."):
        with pytest.raises(InputError) as error:
            convert.load_block(path, block, prefix)
        assert str(error.value) == (
            f"{path} has no NonLocalBlock with the prefix {prefix!r}; set prefix to "
            "decode_head.nl_block."
        )


def test_everything_that_does_not_fit_is_listed():
    state_dict = non_local(pooled=".0") | {"conv_out.bn.bias": np.zeros(C, np.int32)}
    state_dict["theta.conv.weight"] = np.zeros((C // 2, C, 3, 3), np.float32)
    del state_dict["conv_out.bn.weight"]
    with pytest.raises(InputError) as error:
        convert.block_from_torch(state_dict, NonLocalBlock())
    lines = str(error.value).split("\n")
    assert lines[0] == "the state dict does not fit the block"
    assert "  g.conv.weight (4, 8, 1, 1)" in lines
    assert "  conv_out.bn.weight (8,)" in lines
    assert "4 not in the block:" in lines
    assert "  phi.0.conv.weight (4, 8, 1, 1)" in lines
    assert "  theta.conv.weight is (4, 8, 3, 3), (4, 8, 1, 1) in the block" in lines
    assert "  conv_out.bn.bias is int32" in lines
    assert lines[-1] == "use the block that it was made with, or another checkpoint"


def test_a_file_without_the_block(tmp_path):
    torch_file.write(tmp_path / "a.pth", {"conv1.weight": np.zeros((4, 3, 7, 7), np.float32)})
    with pytest.raises(InputError, match=r"has no GlobalContextBlock .*; use another file"):
        convert.load_block(tmp_path / "a.pth", GlobalContextBlock())
    with pytest.raises(InputError, match=r"cannot read .*missing\.pth"):
        convert.load_block(tmp_path / "missing.pth", GlobalContextBlock())


def test_variables_of_another_block_are_refused():
    variables = convert.block_from_torch(*BLOCKS["2d"][1::-1])
    with pytest.raises(InputError, match=r"(?s)does not fit the block.*missing:\n.*conv_mask"):
        convert.block_to_torch(variables, DisentangledNonLocalBlock())
    with pytest.raises(InputError, match="contain no NonLocalBlock; use the variables that"):
        convert.block_to_torch(variables["params"], NonLocalBlock())


def test_another_module_is_refused():
    with pytest.raises(InputError, match="PyTorch names for the block Dense; use one of NonLocalB"):
        convert.block_from_torch({}, nn.Dense(4))
