"""From a flat mapping of plain values to a Flax module."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax import blocks
from nonlocal_jax.backbones import ResNet
from nonlocal_jax.errors import InputError
from nonlocal_jax.heads import FCNHead
from nonlocal_jax.models.segmentation import SegmentationNet

BLOCKS: dict[str, type[nn.Module]] = {
    "nonlocal": blocks.NonLocalBlock,
    "disentangled_nonlocal": blocks.DisentangledNonLocalBlock,
    "global_context": blocks.GlobalContextBlock,
}

# Parameters are float32, so None computes in float32 and follows float64 variables and images.
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


def _choose(what: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise InputError(f"{what} must be one of {', '.join(table)}; got {name!r}")
    return table[name]


def block_options(block: type[nn.Module]) -> dict[str, Any]:
    """The options of a block that a config may set, with their defaults."""
    hidden = ("name", "parent", "norm", "dtype")
    return {f.name: f.default for f in dataclasses.fields(block) if f.name not in hidden}


def _check_block_options(given: Mapping[str, Any], options: Sequence[str], block: str) -> None:
    """Refuses what is neither an option of the network nor one of its block."""
    known = [*options, *inspect.signature(segmentation).parameters]
    for name in given:
        if name not in options:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise InputError(f"a model with block {block!r} has no option {name!r}: {hint}")


def _block(
    name: str, dtype: jnp.dtype | None, options: Mapping[str, Any]
) -> Callable[..., nn.Module] | None:
    if name == "none":
        _check_block_options(options, [], name)
        return None
    block = _choose("block", name, {"none": None, **BLOCKS})
    _check_block_options(options, list(block_options(block)), name)
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return functools.partial(block, dtype=dtype, **options)


def segmentation(
    *,
    num_classes: int,
    block: str = "nonlocal",
    stage_sizes: Sequence[int] = (3, 4, 6, 3),
    strides: Sequence[int] = (1, 2, 1, 1),
    dilations: Sequence[int] = (1, 1, 2, 4),
    contract_dilation: bool = True,
    width: int = 64,
    stem: str = "v1c",
    insert_at: Sequence[str] = (),
    insert_position: str = "after_conv3",
    head_channels: int = 512,
    head_kernel_size: int = 3,
    auxiliary_channels: int = 256,
    dropout: float = 0.1,
    align_corners: bool = False,
    dtype: str = "float32",
    **block_options: Any,
) -> SegmentationNet:
    """A segmentation network; the defaults are mmsegmentation's NL R-50-D8.

    Args:
      num_classes: logits of a pixel.
      block: "nonlocal", "disentangled_nonlocal", "global_context" or "none".
      stage_sizes: this and ``strides``, ``dilations``, ``contract_dilation``, ``width``, ``stem``,
        ``insert_at`` and ``insert_position``: see ``backbones.ResNet``. The block sits in the
        decode head, or, where ``insert_at`` names residual blocks, in the backbone instead.
      head_channels: of the decode head's convolutions, and of its block's input.
      head_kernel_size: of the decode head's convolutions.
      auxiliary_channels: of the auxiliary head's convolution.
      dropout: share of channels that training drops in front of both classifiers.
      align_corners: convention of the resize to the input's size, see ``ops.resize``.
      dtype: of the computation, "float32" or "bfloat16".
      **block_options: the fields of the block's class, see ``blocks``.

    Raises:
      InputError: an option is unknown or no valid choice.
    """
    compute = _choose("dtype", dtype, DTYPES)
    make_block = _block(block, compute, block_options)
    if insert_at and make_block is None:
        raise InputError("insert_at says where to put a block, and block is 'none': name one")
    if len(stage_sizes) < 2:
        raise InputError(
            f"need two stages or more, one for each head; got stage_sizes {tuple(stage_sizes)}"
        )
    backbone = ResNet(
        stage_sizes=tuple(stage_sizes),
        strides=tuple(strides),
        dilations=tuple(dilations),
        contract_dilation=contract_dilation,
        width=width,
        stem=stem,
        insert_block=make_block,
        insert_at=tuple(insert_at),
        insert_position=insert_position,
        dtype=compute,
    )
    head = functools.partial(
        FCNHead,
        num_classes=num_classes,
        kernel_size=head_kernel_size,
        dropout=dropout,
        dtype=compute,
    )
    return SegmentationNet(
        backbone=backbone,
        decode_head=head(channels=head_channels, block=None if insert_at else make_block),
        auxiliary_head=head(channels=auxiliary_channels, num_convs=1, concat_input=False),
        align_corners=align_corners,
    )


NETWORKS: dict[str, Callable[..., nn.Module]] = {"segmentation": segmentation}


def create_model(config: Mapping[str, Any]) -> nn.Module:
    """Builds the network that a flat mapping of plain values describes.

    Args:
      config: ``network`` names the kind of network (default "segmentation"); the rest are its
        options, see ``nonlocal_jax.models.build.segmentation``. Lists do for tuples, so a mapping
        read from JSON works.

    Returns:
      A Flax Linen module.

    Raises:
      InputError: an option is unknown (with the nearest known one), missing, or not a valid choice.
    """
    options = dict(config)
    build = _choose("network", options.pop("network", "segmentation"), NETWORKS)
    signature = inspect.signature(build)
    required = [n for n, p in signature.parameters.items() if p.default is p.empty]
    missing = [n for n in required if n not in options and n != "block_options"]
    if missing:
        raise InputError(f"the model config lacks {', '.join(missing)}")
    return build(**options)


def example_input(config: Mapping[str, Any]) -> jax.ShapeDtypeStruct | None:
    """The shape and type of an input of the network, or None if none is known."""
    if config.get("network", "segmentation") == "segmentation":
        return jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return None
