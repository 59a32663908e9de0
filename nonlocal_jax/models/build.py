"""Builds a Flax module from a flat mapping of plain values.

To add a network, write a function that returns a Flax module, and add it to ``NETWORKS``. Its
keyword arguments are the options. Their annotations determine which values are allowed.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax import blocks
from nonlocal_jax.backbones import ResNet
from nonlocal_jax.backbones.resnet import BlockPosition, Stem
from nonlocal_jax.errors import InputError
from nonlocal_jax.heads import FCNHead
from nonlocal_jax.layers import BatchNorm, Constructor, NormFn
from nonlocal_jax.models._options import Odd, Positive, Probability, check_options
from nonlocal_jax.models.segmentation import SegmentationNet

BLOCKS: dict[str, type[nn.Module]] = {
    "nonlocal": blocks.NonLocalBlock,
    "disentangled_nonlocal": blocks.DisentangledNonLocalBlock,
    "global_context": blocks.GlobalContextBlock,
}

NORMS: dict[str, NormFn] = {
    "batch_norm": BatchNorm,
    "frozen_batch_norm": Constructor(BatchNorm, use_running_average=True),
}

# Parameters are float32. The type None therefore computes in float32, and in float64 if variables
# and images are float64.
DTYPES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": None, "precision": jax.lax.Precision.HIGHEST},
    "bfloat16": {"dtype": jnp.bfloat16, "precision": None},
    "default": {"dtype": None, "precision": None},
}


def _choose(option: str, name: Any, table: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or name not in table:
        raise InputError(f"{option} is {name!r}; use one of {', '.join(table)}")
    return table[name]


def segmentation(
    *,
    num_classes: Positive,
    block: str = "nonlocal",
    block_in_head: bool = True,
    block_at: Sequence[str] = (),
    block_position: BlockPosition = "after_conv3",
    stage_sizes: Sequence[Positive] = (3, 4, 6, 3),
    strides: Sequence[Positive] = (1, 2, 1, 1),
    dilations: Sequence[Positive] = (1, 1, 2, 4),
    contract_dilation: bool = True,
    width: Positive = 64,
    stem: Stem = "v1c",
    norm: str = "batch_norm",
    head_channels: Positive = 512,
    head_kernel_size: Odd = 3,
    auxiliary_channels: Positive = 256,
    dropout: Probability = 0.1,
    align_corners: bool = False,
    dtype: Literal["float32", "bfloat16", "default"] = "float32",
    **block_options: Any,
) -> SegmentationNet:
    """Builds a segmentation network. The defaults are NL R-50-D8 of mmsegmentation.

    Args:
      num_classes: Number of classes.
      block: One of "nonlocal", "disentangled_nonlocal", "global_context" and "none".
      block_in_head: Whether the decode head has the block.
      block_at: The residual blocks of the backbone where the block is inserted too.
      block_position: Position of the block in a residual block of the backbone. For this and
        ``block_at``, ``stage_sizes``, ``strides``, ``dilations``, ``contract_dilation``, ``width``
        and ``stem``, see ``backbones.ResNet``.
      norm: Norm of the network, "batch_norm" or "frozen_batch_norm". The running statistics of a
        frozen batch norm never change. Non-local blocks use it too. Global context blocks use a
        layer norm.
      head_channels: Channels of the convolutions and of the block in the decode head.
      head_kernel_size: Kernel size of the convolutions in both heads.
      auxiliary_channels: Channels of the convolution in the auxiliary head.
      dropout: Probability that training drops a channel before the classifiers.
      align_corners: Convention of the resize to the size of the input, see ``ops.resize``.
      dtype: Type and precision of the computation. Parameters are float32 in each case.
        "float32": float32, with products of full precision (``jax.lax.Precision.HIGHEST``) on all
        devices. "bfloat16": activations and operands of products are bfloat16, and products are
        accumulated in float32. "default": float32, with products of JAX's default precision. JAX
        then rounds the operands to bfloat16 on TPUs and to TF32 on NVIDIA GPUs. On CPUs "default"
        equals "float32".
      **block_options: Attributes of the block, see ``blocks``, with the prefix ``block_``.

    Returns:
      The network, a Flax Linen module.

    Raises:
      InputError: The options do not fit together.
    """
    compute = _choose("dtype", dtype, DTYPES)
    norm_fn = _choose("norm", norm, NORMS)
    block_fn = _block(block, block_options, norm=norm_fn, **compute)
    if block_fn is None and block_at:
        raise InputError(
            f"block_at is {block_at!r}, but block is 'none'; set block to one of "
            f"{', '.join(BLOCKS)}"
        )
    if block_fn is not None and not (block_in_head or block_at):
        raise InputError(
            f"block is {block!r}, but is not used: block_in_head is False and block_at is empty; "
            "set one of them, or use block='none'"
        )
    if len(stage_sizes) < 2:
        raise InputError(
            f"stage_sizes is {stage_sizes!r}, but each of the two heads reads one stage; "
            "use 2 or more stages"
        )
    backbone = ResNet(
        stage_sizes=tuple(stage_sizes),
        strides=tuple(strides),
        dilations=tuple(dilations),
        contract_dilation=contract_dilation,
        width=width,
        stem=stem,
        block=block_fn,
        block_at=tuple(block_at),
        block_position=block_position,
        norm=norm_fn,
        **compute,
    )
    head = functools.partial(
        FCNHead,
        num_classes=num_classes,
        kernel_size=head_kernel_size,
        dropout=dropout,
        norm=norm_fn,
        **compute,
    )
    return SegmentationNet(
        backbone=backbone,
        decode_head=head(channels=head_channels, block=block_fn if block_in_head else None),
        auxiliary_head=head(channels=auxiliary_channels, num_convs=1, concat_input=False),
        align_corners=align_corners,
    )


def _block(
    name: str, options: Mapping[str, Any], *, norm: NormFn, **compute: Any
) -> Callable[..., nn.Module] | None:
    """Returns the constructor of a block with its options set, or None for "none"."""
    if name == "none":
        return None
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    options = {k.removeprefix("block_"): v for k, v in options.items()}
    block = Constructor(BLOCKS[name], **compute, **options)
    has_batch_norm = getattr(block(parent=None), "norm", None) is BatchNorm
    # A global context block keeps its layer norm.
    return Constructor(block, norm=norm) if has_batch_norm else block


NETWORKS: dict[str, Callable[..., nn.Module]] = {"segmentation": segmentation}

# The shape and type of an input, for tracing a network. Only ``convert`` needs it.
EXAMPLE_INPUTS = {"segmentation": jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)}


def _network(config: Mapping[str, Any]) -> str:
    name = config.get("network", "segmentation")
    _choose("network", name, NETWORKS)
    return name


def model_options(config: Mapping[str, Any]) -> dict[str, inspect.Parameter]:
    """Returns the options that a model config may set, each with its type and default.

    They are the keyword arguments of the network's function in ``NETWORKS``. Where the function
    takes ``**block_options``, the attributes of the block follow, with the prefix ``block_``.

    Raises:
      InputError: The network or the block is unknown.
    """
    build = NETWORKS[_network(config)]
    options = dict(inspect.signature(build, eval_str=True).parameters)
    if options.pop("block_options", None):
        name = config.get("block", options["block"].default)
        block = _choose("block", name, {"none": None, **BLOCKS})
        fields = {} if block is None else inspect.signature(block).parameters
        # Set by the network, by the user's own program, and by Flax.
        ours = (
            *("norm", "dtype", "precision", "param_dtype", "kernel_init"),
            *("axis_name", "parent", "name"),
        )
        options |= {f"block_{name}": field for name, field in fields.items() if name not in ours}
    return options


def create_model(config: Mapping[str, Any]) -> nn.Module:
    """Builds the network that a flat mapping of plain values describes.

    Args:
      config: Options of the network, see ``models.build.segmentation``, and ``network``, a key of
        ``NETWORKS`` (default "segmentation"). Lists are accepted for tuples, so a mapping that is
        read from JSON works.

    Returns:
      A Flax Linen module.

    Raises:
      InputError: An option is unknown or missing, or a value is not allowed.
    """
    options = {name: value for name, value in config.items() if name != "network"}
    network, known = _network(config), model_options(config)
    model = f"network {network!r}"
    if "block" in known:
        model += f" with block {options.get('block', known['block'].default)!r}"
    check_options(options, known, model)
    return NETWORKS[network](**options)


def example_input(config: Mapping[str, Any]) -> jax.ShapeDtypeStruct | None:
    """Returns the shape and type of an input, or None if ``EXAMPLE_INPUTS`` has no entry.

    Raises:
      InputError: The network is unknown.
    """
    return EXAMPLE_INPUTS.get(_network(config))
