"""Residual networks for dense prediction: bottlenecks, two stems, dilated stages."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import initializers
from nonlocal_jax.layers.norm import BatchNorm
from nonlocal_jax.ops import dilated_conv

INSERT_POSITIONS = ("after_residual", "after_conv3")
STEMS = ("v1", "v1c")


def _make_dilated_conv() -> Callable[..., jax.Array]:
    """``ops.dilated_conv`` for ``nn.Conv``, which calls it as ``lax.conv_general_dilated``."""
    return lambda x, kernel, *_, rhs_dilation, **__: dilated_conv(x, kernel, rhs_dilation[0])


def conv(features: int, size: int, *, stride: int = 1, dilation: int = 1, **kwargs) -> nn.Conv:
    """A square convolution without bias, padded as PyTorch pads: the same on both sides."""
    pad = dilation * (size // 2)
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        kernel_dilation=dilation,
        use_bias=False,
        kernel_init=initializers.kaiming_fan_out,
        conv_general_dilated_cls=_make_dilated_conv if dilation > 1 and stride == 1 else None,
        **kwargs,
    )


class Bottleneck(nn.Module):
    """ReLU(shortcut(x) + block(conv3(conv2(conv1(x))))): 1x1, 3x3 and 1x1, each with batch norm.

    ResNet (arXiv:1512.03385) with the stride in the 3x3 ("pytorch style"). The shortcut is x, or a
    1x1 convolution with norm where the shape changes. The last norm starts at zero.

    Attributes:
      width: channels of the 3x3; four times as many leave the block.
      stride: of the 3x3.
      dilation: of the 3x3.
      block: constructor of a block behind conv3, inside the residual branch (GCNet), or None.
      dtype: of the computation; None promotes the input with the float32 parameters.
    """

    width: int
    stride: int = 1
    dilation: int = 1
    block: Callable[..., nn.Module] | None = None
    dtype: jnp.dtype | None = None

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps ``[B, H, W, C]`` to ``[B, H', W', 4 * width]``."""
        norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        channels = self.width * self.expansion

        y = conv(self.width, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv(
            self.width,
            3,
            stride=self.stride,
            dilation=self.dilation,
            dtype=self.dtype,
            name="conv2",
        )(y)
        y = nn.relu(norm(name="bn2")(y))
        y = conv(channels, 1, dtype=self.dtype, name="conv3")(y)
        y = norm(name="bn3", scale_init=nn.initializers.zeros)(y)
        if self.block is not None:
            y = self.block(name="block")(y, train=train)

        if self.stride != 1 or x.shape[-1] != channels:
            x = conv(channels, 1, stride=self.stride, dtype=self.dtype, name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A bottleneck ResNet on ``[B, H, W, 3]`` that returns the output of every stage.

    The defaults are ResNet-50 V1c with output stride 8, as in mmsegmentation: three 3x3
    convolutions (width/2, width/2, width) as the stem, stages 3 and 4 dilated instead of strided,
    the first block of a dilated stage with half the dilation (``contract_dilation``). ResNet-101
    has ``stage_sizes=(3, 4, 23, 3)``. Stem "v1" is the 7x7 convolution of torchvision.

    Parameters are named as in PyTorch with ``layer3.0`` written ``layer3_0``.

    Attributes:
      stage_sizes: bottlenecks in each stage.
      strides: of the first block of each stage.
      dilations: of each stage.
      contract_dilation: halve the dilation of the first block of a dilated stage.
      width: channels of the stem and of the 3x3 convolutions of stage 1; doubles each stage.
      stem: "v1c" or "v1".
      insert_block: constructor of a block to insert, or None.
      insert_at: where to, as residual blocks "layer{stage}.{index}", stages from 1, indices from 0.
      insert_position: "after_residual" puts it behind the residual block (NL paper),
        "after_conv3" inside its residual branch (GCNet).
      dtype: of the computation; None promotes the input with the float32 parameters.
    """

    stage_sizes: Sequence[int] = (3, 4, 6, 3)
    strides: Sequence[int] = (1, 2, 1, 1)
    dilations: Sequence[int] = (1, 1, 2, 4)
    contract_dilation: bool = True
    width: int = 64
    stem: str = "v1c"
    insert_block: Callable[..., nn.Module] | None = None
    insert_at: Sequence[str] = ()
    insert_position: str = "after_conv3"
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> list[jax.Array]:
        """Gives the stages' feature maps, ``[B, H/4, W/4, 4 * width]`` the first.

        Raises:
          InputError: the shape or an attribute does not fit.
        """
        self._check(images)
        x = self._apply_stem(images, train)
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

        outputs = []
        stages = zip(self.stage_sizes, self.strides, self.dilations, strict=True)
        for stage, (size, stride, dilation) in enumerate(stages, start=1):
            for index in range(size):
                first = index == 0
                inserted = self.insert_block if f"layer{stage}.{index}" in self.insert_at else None
                inside = self.insert_position == "after_conv3"
                name = f"layer{stage}_{index}"
                x = Bottleneck(
                    width=self.width * 2 ** (stage - 1),
                    stride=stride if first else 1,
                    dilation=max(dilation // 2, 1)
                    if first and self.contract_dilation
                    else dilation,
                    block=inserted if inside else None,
                    dtype=self.dtype,
                    name=name,
                )(x, train=train)
                if inserted is not None and not inside:
                    x = inserted(name=f"{name}_block")(x, train=train)
            outputs.append(x)
        return outputs

    def _apply_stem(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        if self.stem == "v1":
            x = conv(self.width, 7, stride=2, dtype=self.dtype, name="conv1")(x)
            return nn.relu(norm(name="bn1")(x))
        for i, (width, stride) in enumerate(
            ((self.width // 2, 2), (self.width // 2, 1), (self.width, 1)), start=1
        ):
            x = conv(width, 3, stride=stride, dtype=self.dtype, name=f"stem_conv{i}")(x)
            x = nn.relu(norm(name=f"stem_bn{i}")(x))
        return x

    def _check(self, images: jax.Array) -> None:
        if images.ndim != 4:
            raise InputError(f"need images [B, H, W, 3]; got {images.shape}")
        if self.stem not in STEMS:
            raise InputError(f"stem must be one of {STEMS}; got {self.stem!r}")
        if self.insert_position not in INSERT_POSITIONS:
            raise InputError(
                f"insert_position must be one of {INSERT_POSITIONS}; got {self.insert_position!r}"
            )
        if self.width < 2:
            raise InputError(f"width must be at least 2, the stem has half; got {self.width}")
        stages = self.stage_sizes, self.strides, self.dilations
        if len(set(map(len, stages))) > 1:
            raise InputError(
                "stage_sizes, strides and dilations must have an entry for each stage; "
                f"got {', '.join(map(str, stages))}"
            )
        places = [
            f"layer{s}.{i}" for s, size in enumerate(self.stage_sizes, 1) for i in range(size)
        ]
        if unknown := [place for place in self.insert_at if place not in places]:
            raise InputError(f"no such place to insert a block: {unknown}; there are {places}")
