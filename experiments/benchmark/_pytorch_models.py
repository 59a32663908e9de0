"""The same operations, blocks and networks in plain PyTorch, written from the formulas.

Modules have the names of mmsegmentation, so that its state dicts load. Operations take features
``[B, N, C]``, and modules take feature maps ``[B, C, H, W]``. With ``sdpa`` the attention is
``torch.nn.functional.scaled_dot_product_attention``.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonlocal_jax.data import IGNORE_INDEX


def softmax_attention(
    theta: Tensor, phi: Tensor, g: Tensor, *, scale: float, sdpa: bool = False
) -> Tensor:
    if sdpa:
        heads = (x.unsqueeze(1) for x in (theta, phi, g))
        return F.scaled_dot_product_attention(*heads, scale=scale).squeeze(1)
    return ((scale * theta) @ phi.mT).softmax(-1) @ g


def dot_product(theta: Tensor, phi: Tensor, g: Tensor, *, reassociated: bool = False) -> Tensor:
    y = theta @ (phi.mT @ g) if reassociated else (theta @ phi.mT) @ g
    return y / phi.shape[-2]


def concatenation(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    return (a.unsqueeze(-1) + b.unsqueeze(-2)).relu() @ g / b.shape[-1]


def context_pool(x: Tensor, score: Tensor) -> Tensor:
    return score.softmax(-1).unsqueeze(-2) @ x


def disentangled(
    theta: Tensor, phi: Tensor, g: Tensor, unary: Tensor, *, scale: float, sdpa: bool = False
) -> Tensor:
    theta = theta - theta.mean(-2, keepdim=True)
    phi = phi - phi.mean(-2, keepdim=True)
    pairwise = softmax_attention(theta, phi, g, scale=scale, sdpa=sdpa)
    return pairwise + context_pool(g, unary)


def _conv_module(
    inputs: int, outputs: int, size: int = 1, *, norm: bool = True, relu: bool = False
) -> nn.Sequential:
    """mmcv's ``ConvModule``: a convolution, which has a bias only if no norm follows."""
    layers = OrderedDict(conv=nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=not norm))
    if norm:
        layers["bn"] = nn.BatchNorm2d(outputs)
    if relu:
        layers["activate"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def _positions(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` to ``[B, N, C]``: a view if the map is channels-last."""
    return x.flatten(2).mT


class NonLocal2d(nn.Module):
    """NL: x + bn(W y), where y is embedded Gaussian attention with half of the channels."""

    def __init__(self, channels: int, sdpa: bool = False):
        super().__init__()
        width = channels // 2
        self.sdpa = sdpa
        self.g = _conv_module(channels, width, norm=False)
        self.theta = _conv_module(channels, width, norm=False)
        self.phi = _conv_module(channels, width, norm=False)
        self.conv_out = _conv_module(width, channels)

    def relate(self, x: Tensor, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        return softmax_attention(theta, phi, g, scale=theta.shape[-1] ** -0.5, sdpa=self.sdpa)

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = (_positions(conv(x)) for conv in (self.theta, self.phi, self.g))
        y = self.relate(x, theta, phi, g)
        return x + self.conv_out(y.mT.unflatten(-1, x.shape[2:]))


class DisentangledNonLocal2d(NonLocal2d):
    """DNL: whitened pairwise attention plus unary attention."""

    def __init__(self, channels: int, sdpa: bool = False):
        super().__init__(channels, sdpa)
        self.conv_mask = nn.Conv2d(channels, 1, 1)

    def relate(self, x: Tensor, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        unary = self.conv_mask(x).flatten(1)
        scale = theta.shape[-1] ** -0.5 / 0.05
        return disentangled(theta, phi, g, unary, scale=scale, sdpa=self.sdpa)


class ContextBlock(nn.Module):
    """GC: x + t(c), where the context c is the same for all positions."""

    def __init__(self, channels: int, sdpa: bool = False):
        super().__init__()
        width = channels // 4
        self.conv_mask = nn.Conv2d(channels, 1, 1)
        self.channel_add_conv = nn.Sequential(
            nn.Conv2d(channels, width, 1),
            nn.LayerNorm([width, 1, 1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        context = context_pool(_positions(x), self.conv_mask(x).flatten(1))
        return x + self.channel_add_conv(context.mT.unsqueeze(-1))


# For each key of ``models.build.BLOCKS``: the module, and its name in mmsegmentation's heads.
BLOCKS = {
    "nonlocal": (NonLocal2d, "nl_block"),
    "disentangled_nonlocal": (DisentangledNonLocal2d, "dnl_block"),
    "global_context": (ContextBlock, "gc_block"),
}


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, dilation: int):
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """ResNet V1c with output stride 8. It returns the outputs of the last two stages."""

    def __init__(self, stage_sizes: Sequence[int], width: int):
        super().__init__()
        layers, inputs = [], 3
        for outputs, stride in ((width // 2, 2), (width // 2, 1), (width, 1)):
            conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        self.stem = nn.Sequential(*layers)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages = zip(stage_sizes, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)
        for stage, (size, stride, dilation) in enumerate(stages):
            blocks = []
            for index in range(size):
                # The first block of a dilated stage has half the dilation.
                rate = max(dilation // 2, 1) if index == 0 else dilation
                stage_width = width * 2**stage
                blocks.append(Bottleneck(inputs, stage_width, 1 if index else stride, rate))
                inputs = 4 * stage_width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layer2(self.layer1(self.maxpool(self.stem(x))))
        x = self.layer3(x)
        return x, self.layer4(x)


class FCNHead(nn.Module):
    """One convolution and the classifier."""

    def __init__(self, inputs: int, channels: int, classes: int, dropout: float):
        super().__init__()
        self.convs = nn.ModuleList([_conv_module(inputs, channels, 3, relu=True)])
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.convs[0](x)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.dropout(self.features(x)))


class BlockHead(FCNHead):
    """Convolution, block, convolution, convolution over the concatenated input, classifier."""

    def __init__(
        self, block: str, inputs: int, channels: int, classes: int, dropout: float, sdpa: bool
    ):
        super().__init__(inputs, channels, classes, dropout)
        make, self.block_name = BLOCKS[block]
        setattr(self, self.block_name, make(channels, sdpa))
        self.convs.append(_conv_module(channels, channels, 3, relu=True))
        self.conv_cat = _conv_module(inputs + channels, channels, 3, relu=True)

    def features(self, x: Tensor) -> Tensor:
        y = self.convs[1](getattr(self, self.block_name)(self.convs[0](x)))
        return self.conv_cat(torch.cat([x, y], 1))


class SegmentationNet(nn.Module):
    """mmsegmentation's ``EncoderDecoder``, built from a config of ``create_model``."""

    def __init__(self, config, *, sdpa: bool = False):
        super().__init__()
        width, classes = config["width"], config["num_classes"]
        dropout, self.align_corners = config["dropout"], config["align_corners"]
        self.backbone = ResNet(config["stage_sizes"], width)
        self.decode_head = BlockHead(
            config["block"], 32 * width, config["head_channels"], classes, dropout, sdpa
        )
        self.auxiliary_head = FCNHead(16 * width, config["auxiliary_channels"], classes, dropout)

    def resize(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes, H, W]``."""
        _, last = self.backbone(images)
        return self.resize(self.decode_head(last), images.shape[2:])

    def loss(self, images: Tensor, labels: Tensor, config) -> tuple[Tensor, Tensor]:
        """mmsegmentation's loss and its pixel accuracy."""
        before, last = self.backbone(images)
        logits = self.resize(self.decode_head(last), labels.shape[1:])
        auxiliary = self.resize(self.auxiliary_head(before), labels.shape[1:])
        decode, aux = (
            F.cross_entropy(x, labels, ignore_index=IGNORE_INDEX, reduction="sum") / labels.numel()
            for x in (logits, auxiliary)
        )
        counted = labels != IGNORE_INDEX
        correct = ((logits.argmax(1) == labels) & counted).sum()
        return decode + config["auxiliary_weight"] * aux, correct / counted.sum()
