"""Residual networks for images and clips: bottlenecks, two stems, dilated stages."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import flax.linen as nn
import jax

from nonlocal_jax.backbones.temporal import Temporal, check_places
from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import BatchNorm, Conv, NormFn, TemporalShift, apply_norm
from nonlocal_jax.layers.dense import promote_dtype
from nonlocal_jax.ops._numerics import check_floating, with_sizes_known
from nonlocal_jax.ops.shift import Shift

BlockPosition = Literal["after_residual", "after_conv3"]
Stem = Literal["v1", "v1c"]
Remat = Literal["none", "blocks", "full"]


def _conv(
    features: int,
    size: int,
    stride: int = 1,
    dilation: int = 1,
    *,
    frames: int = 1,
    frame_stride: int = 1,
    **options: Any,
) -> Conv:
    """A convolution whose kernel has a time axis only if it spans frames or strides over them."""
    if frames == frame_stride == 1:
        return Conv(features, size, stride, dilation, **options)
    sizes, strides = (frames, size, size), (frame_stride, stride, stride)
    return Conv(features, sizes, strides, (1, dilation, dilation), **options)


def _max_pool(
    x: jax.Array, window: tuple[int, ...], strides: tuple[int, ...], padding: int
) -> jax.Array:
    """Max-pools over (frames, height, width), or (height, width). Frames are not padded."""
    sizes, axes = x.shape[1:-1], x.ndim - 2
    window, strides, padding = window[-axes:], strides[-axes:], (0, padding, padding)[-axes:]
    fits = (n + 2 * p >= w for n, p, w in zip(sizes, padding, window, strict=True))
    if with_sizes_known(x) and not all(fits):
        raise InputError(
            f"the input is too small: a max pool over {window} gets a feature map of {sizes}; use "
            "larger images, clips with more frames, or smaller pool1_frames or pool2_frames"
        )
    return nn.max_pool(x, window, strides, padding=[(p, p) for p in padding])


class Bottleneck(nn.Module):
    """A residual block of 1x1, 3x3 and 1x1 convolutions, each with a norm::

        y = ReLU(shortcut(x) + block(conv3(conv2(conv1(x)))))

    This is the block of ResNet (arXiv:1512.03385) with the stride in the 3x3 convolution, as in
    PyTorch. conv1 and conv2 include a ReLU. The shortcut is x, or a 1x1 convolution with norm where
    the shape changes. ``block`` is optional. The scale of the last norm is initialized to zero.
    Clips are processed frame by frame, unless ``frames`` or ``shift`` is set.

    Attributes:
      width: Channels of the 3x3 convolution. The output has four times as many.
      stride: Stride of the 3x3 convolution.
      dilation: Dilation of the 3x3 convolution.
      block: Constructor of a block after conv3, inside the residual branch (GCNet), or None. See
        ``ResNet``.
      frames: Frames of the kernels of conv1 and of conv2.
      shift: Direction of the temporal shift of the input of conv1, or None. The shortcut is not
        shifted.
      norm: Constructor of the norms, see ``layers.apply_norm``.
      dtype: Type of the computation. None promotes the input with the float32 parameters.
      precision: Precision of the products, see ``ops.conv``.
    """

    width: int
    stride: int = 1
    dilation: int = 1
    block: Callable[..., nn.Module] | None = None
    frames: tuple[int, int] = (1, 1)
    shift: Shift | None = None
    norm: NormFn = BatchNorm
    dtype: jax.typing.DTypeLike | None = None
    precision: jax.lax.PrecisionLike = None

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps ``[B, *S, C]`` to ``[B, *S', 4 * width]``."""
        conv = functools.partial(_conv, dtype=self.dtype, precision=self.precision)
        norm = functools.partial(self.norm, dtype=self.dtype)
        normalize = functools.partial(apply_norm, train=train)
        channels = self.width * self.expansion
        frames1, frames2 = self.frames

        y = x if self.shift is None else TemporalShift(self.shift, name="temporal_shift")(x)
        y = conv(self.width, 1, frames=frames1, name="conv1")(y)
        y = nn.relu(normalize(norm(name="bn1"), y))
        y = conv(self.width, 3, self.stride, self.dilation, frames=frames2, name="conv2")(y)
        y = nn.relu(normalize(norm(name="bn2"), y))
        y = conv(channels, 1, name="conv3")(y)
        y = normalize(norm(name="bn3", scale_init=nn.initializers.zeros), y)
        if self.block is not None:
            y = self.block(name="block")(y, train=train)

        if self.stride != 1 or x.shape[-1] != channels:
            x = conv(channels, 1, self.stride, name="downsample_conv")(x)
            x = normalize(norm(name="downsample_bn"), x)
        x, y = promote_dtype(x, y, dtype=self.dtype)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A bottleneck ResNet that returns the feature map of every stage.

    The defaults are ResNet-50 V1c with output stride 8, as in mmsegmentation. The stem consists of
    three 3x3 convolutions (width/2, width/2, width). Stages 3 and 4 are dilated instead of strided.
    The first residual block of a dilated stage has half the dilation (``contract_dilation``).
    ResNet-101 has ``stage_sizes=(3, 4, 23, 3)``. The stem "v1" is the 7x7 convolution of
    torchvision.

    Clips ``[B, T, H, W, 3]`` are processed frame by frame, with three exceptions: the layers that
    ``temporal`` changes, blocks whose ``axes`` is not "space", and norms whose statistics are over
    positions. At inference, a batch norm treats frames independently. In training, its statistics
    are those of all frames. ``nn.GroupNorm`` normalizes a clip as a whole.

    Parameters have the names of PyTorch, with ``layer3.0`` written ``layer3_0``. Parameter paths
    are final. They will not change for rematerialization or for scanning over layers.

    Attributes:
      stage_sizes: Number of residual blocks in each stage.
      strides: Stride of the first residual block of each stage.
      dilations: Dilation of each stage.
      contract_dilation: Whether the first residual block of a dilated stage has half the dilation.
      width: Channels of the stem and of the 3x3 convolutions of stage 1. It doubles in each stage.
      stem: Kind of the stem, "v1c" or "v1".
      block: Constructor of the block that ``block_at`` inserts, or None. It is called as
        ``block(name=...)(x, train=train)``. Networks are equal if their constructors are equal, see
        ``layers.Constructor``. The same holds for ``norm``.
      block_at: The residual blocks where the block is inserted, as "layer{stage}.{index}" with
        stages from 1 and indices from 0.
      block_position: Position of the inserted block. "after_residual" is after the residual block
        (NL paper), "after_conv3" is inside its residual branch (GCNet).
      temporal: What the network does along the frames of a clip.
      remat: The activations that the backward pass computes again instead of storing them:
        "none", those inside the residual blocks ("blocks"), or those inside the stem and the
        inserted blocks too ("full"). This needs less memory and more time.
      norm: Constructor of the norms, see ``layers.apply_norm``. Inserted blocks have their own.
      dtype: Type of the computation. None promotes the input with the float32 parameters.
      precision: Precision of the products, see ``ops.conv``.
    """

    stage_sizes: Sequence[int] = (3, 4, 6, 3)
    strides: Sequence[int] = (1, 2, 1, 1)
    dilations: Sequence[int] = (1, 1, 2, 4)
    contract_dilation: bool = True
    width: int = 64
    stem: Stem = "v1c"
    block: Callable[..., nn.Module] | None = None
    block_at: Sequence[str] = ()
    block_position: BlockPosition = "after_conv3"
    temporal: Temporal = Temporal()
    remat: Remat = "none"
    norm: NormFn = BatchNorm
    dtype: jax.typing.DTypeLike | None = None
    precision: jax.lax.PrecisionLike = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> list[jax.Array]:
        """Returns a feature map for each stage. The first is ``[B, H/4, W/4, 4 * width]``.

        Images are ``[B, H, W, 3]``. Clips are ``[B, T, H, W, 3]``, with feature maps
        ``[B, T', ...]``. T' is T, unless ``temporal`` has strides or pools over frames.

        Raises:
          InputError: A shape, a type or an attribute is wrong.
        """
        self._check(images)
        temporal = self.temporal
        again = nn.remat if self.remat == "full" else lambda function: function
        x = again(lambda net, x: net._apply_stem(x, train))(self, images)
        window, strides = (temporal.pool1_frames, 3, 3), (temporal.pool1_stride, 2, 2)
        x = _max_pool(x, window, strides, temporal.pool1_padding)

        residual = Bottleneck
        if self.remat != "none":
            residual = nn.remat(Bottleneck, static_argnums=2)
        insert = again(lambda block, x: block(x, train=train))
        outputs = []
        stages = zip(self.stage_sizes, self.strides, self.dilations, strict=True)
        for stage, (size, stride, dilation) in enumerate(stages, start=1):
            for index in range(size):
                first, place = index == 0, f"layer{stage}.{index}"
                block = self.block if place in self.block_at else None
                if place in temporal.group_at:
                    block = functools.partial(block, frames=temporal.group_frames)
                inside = self.block_position == "after_conv3"
                contract = first and self.contract_dilation
                name = f"layer{stage}_{index}"
                x = residual(
                    width=self.width * 2 ** (stage - 1),
                    stride=stride if first else 1,
                    dilation=max(dilation // 2, 1) if contract else dilation,
                    block=block if inside else None,
                    frames=temporal.kernel_frames(place),
                    shift=temporal.shift if place in temporal.shift_at else None,
                    norm=self.norm,
                    dtype=self.dtype,
                    precision=self.precision,
                    name=name,
                )(x, train)
                if block is not None and not inside:
                    x = insert(block(name=f"{name}_block"), x)
            outputs.append(x)
            if stage == 1 and temporal.pool2_frames > 1:
                window = strides = (temporal.pool2_frames, 1, 1)
                x = _max_pool(x, window, strides, padding=0)
        return outputs

    def _apply_stem(self, x: jax.Array, train: bool) -> jax.Array:
        conv = functools.partial(_conv, dtype=self.dtype, precision=self.precision)
        norm = functools.partial(self.norm, dtype=self.dtype)
        if self.stem == "v1":
            frames, frame_stride = self.temporal.conv1_frames, self.temporal.conv1_stride
            x = conv(self.width, 7, 2, frames=frames, frame_stride=frame_stride, name="conv1")(x)
            return nn.relu(apply_norm(norm(name="bn1"), x, train=train))
        half = self.width // 2
        for i, (width, stride) in enumerate(((half, 2), (half, 1), (self.width, 1)), start=1):
            x = conv(width, 3, stride, name=f"stem_conv{i}")(x)
            x = nn.relu(apply_norm(norm(name=f"stem_bn{i}"), x, train=train))
        return x

    def _check(self, images: jax.Array) -> None:
        check_floating(images=images)
        if images.ndim not in (4, 5):
            raise InputError(
                f"images has shape {images.shape}; use images [B, H, W, 3] or clips [B, T, H, W, 3]"
            )
        kinds = {"stem": Stem, "block_position": BlockPosition, "remat": Remat}
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                choices = " or ".join(map(repr, get_args(kind)))
                raise InputError(f"{name} is {getattr(self, name)!r}; use {choices}")
        if self.width < 2:
            raise InputError(
                f"width is {self.width}, but the stem has half as many channels; use 2 or more"
            )
        stages = self.stage_sizes, self.strides, self.dilations
        if len(set(map(len, stages))) > 1:
            raise InputError(
                f"stage_sizes is {stages[0]}, strides is {stages[1]}, dilations is {stages[2]}; "
                "use one entry per stage in each of them"
            )
        places = [
            f"layer{s}.{i}" for s, size in enumerate(self.stage_sizes, 1) for i in range(size)
        ]
        check_places("block_at", self.block_at, places)
        self.temporal.check(places, self.block_at, self.stem)
        if images.ndim == 4 and self.temporal.relates_frames:
            raise InputError(
                f"images has shape {images.shape}, but {self.temporal} relates frames; "
                "use clips [B, T, H, W, 3]"
            )
