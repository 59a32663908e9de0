"""The video classification network: a backbone, a mean over positions, and a linear classifier."""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax.backbones import ResNet, Temporal
from nonlocal_jax.backbones.temporal import Inflation
from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import Constructor
from nonlocal_jax.layers.dense import Float32Dense
from nonlocal_jax.models._options import Odd, Positive, PositiveNumber, Probability
from nonlocal_jax.models._parts import BLOCKS, DTYPES, NORMS, block_constructor, choose
from nonlocal_jax.ops._numerics import check_floating, float32_or_more, with_sizes_known
from nonlocal_jax.ops.shift import Shift

Window = tuple[int | None, int | None, int | None]


class VideoNet(nn.Module):
    """A backbone, the mean of its last feature map over frames and positions, and a classifier.

    Attributes:
      backbone: Module that maps clips to a list of feature maps.
      num_classes: Number of classes.
      dropout: Probability that training drops a channel of the mean.
      dropout_per_frame: Whether training drops channels of each frame separately (TSM) or of the
        clip.
      head_std: Standard deviation of the initial weights of the classifier.
      dtype: Type of the computation. None promotes the input with the float32 parameters.
      precision: Precision of the products, as in ``nn.Dense``.
    """

    backbone: nn.Module
    num_classes: int
    dropout: float = 0.5
    dropout_per_frame: bool = False
    head_std: float = 0.01
    dtype: jax.typing.DTypeLike | None = None
    precision: jax.lax.PrecisionLike = None

    @nn.compact
    def __call__(
        self, clips: jax.Array, train: bool = False, window: Window | None = None
    ) -> jax.Array:
        """Maps normalized RGB clips to logits, at least float32.

        Args:
          clips: ``[B, T, H, W, 3]``.
          train: Whether dropout is on, and norms use the statistics of the batch.
          window: (frames, height, width) of a window of the last feature map, at inference. None
            for an axis means the whole axis. The classifier is applied to the mean of each window,
            with stride 1. ``(None, 7, 7)`` is the fully convolutional test of the NL paper.
            ``(1, None, None)`` gives the logits of each frame.

        Returns:
          Logits ``[B, classes]``, or with a window ``[B, t, h, w, classes]``.

        Raises:
          InputError: The clips have the wrong shape or type, or the window does not fit.
        """
        check_floating(clips=clips)
        if clips.ndim != 5 or clips.shape[-1] != 3:
            raise InputError(
                f"clips has shape {clips.shape}; use normalized RGB clips [B, T, H, W, 3]"
            )
        if with_sizes_known(clips) and 0 in clips.shape[1:]:
            raise InputError(f"clips has shape {clips.shape}; use at least one frame and one pixel")
        if train and window is not None:
            raise InputError(f"window is {window}, but train is True; use a window at inference")
        x = self.backbone(clips, train)[-1]
        x = x.astype(float32_or_more(x))
        if window is not None:
            x = _sliding_mean(x, window)
        else:
            drop = nn.Dropout(self.dropout, deterministic=not train)
            x = jnp.mean(x, (2, 3))  # [B, T, C]
            x = jnp.mean(drop(x), 1) if self.dropout_per_frame else drop(jnp.mean(x, 1))
        return Float32Dense(
            self.num_classes,
            dtype=self.dtype,
            precision=self.precision,
            kernel_init=nn.initializers.normal(self.head_std),
            name="classifier",
        )(x)


def _sliding_mean(x: jax.Array, window: Window) -> jax.Array:
    size = x.shape[1:-1]
    if not isinstance(window, Sequence) or len(window) != len(size):
        raise InputError(
            f"window is {window}; use (frames, height, width), or None for a whole axis"
        )
    window = tuple(n if w is None else w for n, w in zip(size, window, strict=True))
    if with_sizes_known(x) and not all(1 <= w <= n for n, w in zip(size, window, strict=True)):
        raise InputError(
            f"window is {window}, but the last feature map has the size {size}; use positive sizes "
            "that are not larger, or None for a whole axis"
        )
    with jax.numpy_dtype_promotion("standard"):  # Flax divides by an integer
        return nn.avg_pool(x, window)


def video(
    *,
    num_classes: Positive,
    block: str = "none",
    block_at: Sequence[str] = (),
    stage_sizes: Sequence[Positive] = (3, 4, 6, 3),
    strides: Sequence[Positive] = (1, 2, 2, 2),
    width: Positive = 64,
    conv1_frames: Odd = 1,
    conv1_stride: Positive = 1,
    pool1_frames: Positive = 1,
    pool1_stride: Positive = 1,
    pool1_padding: Literal[0, 1] = 1,
    pool2_frames: Positive = 1,
    inflate: Inflation = "3x1x1",
    inflate_at: Sequence[str] = (),
    shift: Shift = "both",
    shift_at: Sequence[str] = (),
    group_frames: Positive | None = None,
    group_at: Sequence[str] = (),
    norm: Literal["batch_norm", "frozen_batch_norm"] = "batch_norm",
    norm_group_size: Positive | None = None,
    block_norm: Literal["batch_norm", "frozen_batch_norm", "none"] = "batch_norm",
    dropout: Probability = 0.5,
    dropout_per_frame: bool = False,
    head_std: PositiveNumber = 0.01,
    dtype: Literal["float32", "bfloat16", "default"] = "float32",
    **block_options: Any,
) -> VideoNet:
    """Builds a video classification network. The defaults are a ResNet-50 without layers over time.

    Args:
      num_classes: Number of classes.
      block: One of "nonlocal", "disentangled_nonlocal", "global_context" and "none".
      block_at: The residual blocks after which the block is inserted. For this and ``stage_sizes``,
        ``strides`` and ``width``, see ``backbones.ResNet``.
      conv1_frames: For this and all options until ``group_at``, see ``backbones.Temporal``.
      norm: Norm of the backbone, "batch_norm" or "frozen_batch_norm". The running statistics of a
        frozen batch norm never change.
      norm_group_size: Number of clips that training normalizes together, or None for the whole
        batch. See ``layers.BatchNorm.group_size``.
      block_norm: Norm of non-local blocks, "batch_norm", "frozen_batch_norm" or "none". Global
        context blocks use a layer norm.
      dropout: For this and ``dropout_per_frame`` and ``head_std``, see ``VideoNet``.
      dtype: Type and precision of the computation, see ``models.segmentation.segmentation``.
      **block_options: Attributes of the block, see ``blocks``, with the prefix ``block_``.

    Returns:
      The network, a Flax Linen module.

    Raises:
      InputError: The options do not fit together.
    """
    compute = choose("dtype", dtype, DTYPES)
    if (block == "none") == bool(block_at):
        raise InputError(
            f"block is {block!r} and block_at is {block_at!r}; set block to one of "
            f"{', '.join(BLOCKS)} and block_at to the places, or block='none' and block_at=()"
        )
    grouped = {} if norm_group_size is None else {"group_size": norm_group_size}
    norms = {"none": None} | {name: Constructor(make, **grouped) for name, make in NORMS.items()}
    temporal = Temporal(
        conv1_frames=conv1_frames,
        conv1_stride=conv1_stride,
        pool1_frames=pool1_frames,
        pool1_stride=pool1_stride,
        pool1_padding=pool1_padding,
        pool2_frames=pool2_frames,
        inflate=inflate,
        inflate_at=tuple(inflate_at),
        shift=shift,
        shift_at=tuple(shift_at),
        group_frames=group_frames,
        group_at=tuple(group_at),
    )
    backbone = ResNet(
        stage_sizes=tuple(stage_sizes),
        strides=tuple(strides),
        dilations=(1,) * len(stage_sizes),
        width=width,
        stem="v1",
        block=block_constructor(block, block_options, norm=norms[block_norm], **compute),
        block_at=tuple(block_at),
        block_position="after_residual",
        temporal=temporal,
        norm=norms[norm],
        **compute,
    )
    return VideoNet(
        backbone=backbone,
        num_classes=num_classes,
        dropout=dropout,
        dropout_per_frame=dropout_per_frame,
        head_std=head_std,
        **compute,
    )
