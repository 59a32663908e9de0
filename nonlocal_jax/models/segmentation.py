"""The segmentation network, with a backbone, a decode head and an auxiliary head."""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax

from nonlocal_jax.backbones import ResNet
from nonlocal_jax.backbones.resnet import BlockPosition, Stem
from nonlocal_jax.errors import InputError
from nonlocal_jax.heads import FCNHead
from nonlocal_jax.models._options import Odd, Positive, Probability
from nonlocal_jax.models._parts import BLOCKS, DTYPES, NORMS, block_constructor, choose
from nonlocal_jax.ops import resize


class SegmentationNet(nn.Module):
    """A backbone with two heads, like the ``EncoderDecoder`` of mmsegmentation.

    The decode head reads the last stage of the backbone. The auxiliary head reads the stage before.
    The auxiliary head is only for training: ``init`` creates its parameters, but inference does not
    run it.

    Attributes:
      backbone: Module that maps images to a list of feature maps.
      decode_head: Module that maps a feature map to logits.
      auxiliary_head: Module that maps a feature map to the logits of the auxiliary loss.
      align_corners: Convention of the resize to the size of the input, see ``ops.resize``.
      remat: Whether the backward pass computes the activations inside the heads again.
    """

    backbone: nn.Module
    decode_head: nn.Module
    auxiliary_head: nn.Module
    align_corners: bool = False
    remat: bool = False

    @property
    def stride(self) -> int:
        """Number of rows of an image for one row of the logits before the resize."""
        return 4 * math.prod(self.backbone.strides)  # 4 are those of the stem

    def __call__(
        self, images: jax.Array, train: bool = False, *, upsample: bool = True
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Maps normalized RGB images ``[B, H, W, 3]`` to logits, at least float32.

        Clips ``[B, T, H, W, 3]`` are segmented frame by frame, see ``backbones.ResNet``.

        Args:
          images: The images.
          train: Whether to train: normalize by the batch, and run dropout and the auxiliary head.
          upsample: At inference, whether to resize the logits to the size of the images.

        Returns:
          At inference, logits ``[B, H, W, classes]`` or ``[B, T, H, W, classes]``. In training, the
          logits of the decode head and of the auxiliary head at the size of the feature map.

        Raises:
          InputError: The images have the wrong shape or type.
        """
        if images.ndim not in (4, 5) or images.shape[-1] != 3:
            raise InputError(
                f"images has shape {images.shape}; "
                "use normalized RGB images [B, H, W, 3] or clips [B, T, H, W, 3]"
            )
        *_, before, last = self.backbone(images, train)

        def apply(head: nn.Module, x: jax.Array) -> jax.Array:
            return head(x, train)

        if self.remat:
            apply = nn.remat(apply)
        logits = apply(self.decode_head, last)
        if train or self.is_initializing():
            auxiliary = apply(self.auxiliary_head, before)
            if train:
                return logits, auxiliary
        if not upsample:
            return logits
        return resize(logits, images.shape[-3:-1], align_corners=self.align_corners)


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
    compute = choose("dtype", dtype, DTYPES)
    norm_fn = choose("norm", norm, NORMS)
    block_fn = block_constructor(block, block_options, norm=norm_fn, **compute)
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
