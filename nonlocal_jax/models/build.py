"""Builds a Flax module from a flat mapping of plain values.

To add a network, write a function that returns a Flax module, and enter it in ``NETWORKS``. Its
keyword arguments are the options; their annotations and defaults say which values are allowed.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax import blocks
from nonlocal_jax.backbones import ResNet
from nonlocal_jax.backbones.resnet import BlockPosition, Stem
from nonlocal_jax.errors import InputError
from nonlocal_jax.heads import FCNHead
from nonlocal_jax.layers import BatchNorm, NormFn
from nonlocal_jax.models._options import Odd, Positive, Probability, check_options
from nonlocal_jax.models.segmentation import SegmentationNet

BLOCKS: dict[str, type[nn.Module]] = {
    "nonlocal": blocks.NonLocalBlock,
    "disentangled_nonlocal": blocks.DisentangledNonLocalBlock,
    "global_context": blocks.GlobalContextBlock,
}

NORMS: dict[str, NormFn] = {
    "batch_norm": BatchNorm,
    "frozen_batch_norm": functools.partial(BatchNorm, use_running_average=True),
}

# Parameters are float32. None therefore computes in float32, and in float64 if variables and
# images are float64.
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


def _choose(option: str, name: Any, table: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or name not in table:
        raise InputError(f"{option}={name!r} is unknown; use one of {', '.join(table)}")
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
    dtype: str = "float32",
    **block_options: Any,
) -> SegmentationNet:
    """Builds a segmentation network; the defaults are NL R-50-D8 of mmsegmentation.

    Args:
      num_classes: number of classes.
      block: "nonlocal", "disentangled_nonlocal", "global_context" or "none".
      block_in_head: put the block into the decode head.
      block_at: put the block into the backbone too, at these residual blocks.
      block_position: where in a residual block of the backbone. For this and ``block_at``,
        ``stage_sizes``, ``strides``, ``dilations``, ``contract_dilation``, ``width`` and ``stem``,
        see ``backbones.ResNet``.
      norm: "batch_norm", or "frozen_batch_norm", whose running statistics never change. Also the
        norm of non-local blocks; the layer norm in a global context block stays.
      head_channels: of the convolutions and of the block in the decode head.
      head_kernel_size: of the convolutions in both heads.
      auxiliary_channels: of the convolution in the auxiliary head.
      dropout: probability that training drops a channel in front of the classifiers.
      align_corners: convention of the resize to the size of the input, see ``ops.resize``.
      dtype: type of the computation, "float32" or "bfloat16".
      **block_options: attributes of the block, see ``blocks``, with the prefix ``block_``.

    Raises:
      InputError: the options do not fit together.
    """
    compute = _choose("dtype", dtype, DTYPES)
    norm_fn = _choose("norm", norm, NORMS)
    block_fn = _block(block, block_options, norm_fn, compute)
    if block_fn is None and block_at:
        raise InputError(f"block_at={block_at!r} needs a block; use one of {', '.join(BLOCKS)}")
    if block_fn is not None and not (block_in_head or block_at):
        raise InputError(
            f"block={block!r} is put nowhere; use block_in_head=True, block_at or block='none'"
        )
    if len(stage_sizes) < 2:
        raise InputError(
            f"stage_sizes={stage_sizes!r} is too short: each head reads one stage; use 2 or more"
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
        dtype=compute,
    )
    head = functools.partial(
        FCNHead,
        num_classes=num_classes,
        kernel_size=head_kernel_size,
        dropout=dropout,
        norm=norm_fn,
        dtype=compute,
    )
    return SegmentationNet(
        backbone=backbone,
        decode_head=head(channels=head_channels, block=block_fn if block_in_head else None),
        auxiliary_head=head(channels=auxiliary_channels, num_convs=1, concat_input=False),
        align_corners=align_corners,
    )


def _block(
    name: str, options: Mapping[str, Any], norm: NormFn, dtype: jnp.dtype | None
) -> Callable[..., nn.Module] | None:
    """Returns the constructor of a block with its options set, or None for "none"."""
    if name == "none":
        return None
    block = BLOCKS[name]
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    options = {k.removeprefix("block_"): v for k, v in options.items()}
    if getattr(block, "norm", None) is BatchNorm:  # the layer norm of a global context block stays
        options["norm"] = norm
    return functools.partial(block, dtype=dtype, **options)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"segmentation": segmentation}

# The shape and type of an input, for tracing a network; needed only by ``convert``.
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
      InputError: the network or the block is unknown.
    """
    build = NETWORKS[_network(config)]
    options = dict(inspect.signature(build, eval_str=True).parameters)
    if options.pop("block_options", None):
        name = config.get("block", options["block"].default)
        block = _choose("block", name, {"none": None, **BLOCKS})
        fields = {} if block is None else inspect.signature(block).parameters
        ours = ("norm", "dtype", "parent", "name")  # set by the network and by Flax
        options |= {f"block_{name}": field for name, field in fields.items() if name not in ours}
    return options


def create_model(config: Mapping[str, Any]) -> nn.Module:
    """Builds the network that a flat mapping of plain values describes.

    Args:
      config: ``network`` is a key of ``NETWORKS`` (default "segmentation"); the rest are its
        options, see ``models.build.segmentation``. Lists are accepted for tuples, so a mapping
        read from JSON works.

    Returns:
      A Flax Linen module.

    Raises:
      InputError: an option is unknown or missing, or a value is not allowed.
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
      InputError: the network is unknown.
    """
    return EXAMPLE_INPUTS.get(_network(config))
