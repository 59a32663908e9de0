"""The I3D with non-local blocks in plain PyTorch, with the names of mmaction2's modules."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from experiments.benchmark._pytorch_models import softmax_attention


def _conv_module(
    inputs: int,
    outputs: int,
    size: tuple[int, int, int] = (1, 1, 1),
    stride: tuple[int, int, int] = (1, 1, 1),
    *,
    norm: bool = True,
    relu: bool = True,
) -> nn.Sequential:
    """A convolution, which has a bias only if no norm follows."""
    padding = tuple(n // 2 for n in size)
    layers = OrderedDict(conv=nn.Conv3d(inputs, outputs, size, stride, padding, bias=not norm))
    if norm:
        layers["bn"] = nn.BatchNorm3d(outputs)
    if relu:
        layers["activate"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


class NonLocal3d(nn.Module):
    """NL: x + bn(W y), where y is embedded Gaussian attention to pooled keys and values."""

    def __init__(self, channels: int, sdpa: bool):
        super().__init__()
        width, linear = channels // 2, {"norm": False, "relu": False}
        self.sdpa = sdpa
        self.theta = _conv_module(channels, width, **linear)
        self.phi, self.g = (
            nn.Sequential(_conv_module(channels, width, **linear), nn.MaxPool3d((1, 2, 2)))
            for _ in range(2)
        )
        self.conv_out = _conv_module(width, channels, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = (conv(x).flatten(2).mT for conv in (self.theta, self.phi, self.g))
        y = softmax_attention(theta, phi, g, scale=1.0, sdpa=self.sdpa)
        return x + self.conv_out(y.mT.unflatten(-1, x.shape[2:]))


class Bottleneck(nn.Module):
    """A residual block, followed by a non-local block if ``block``."""

    def __init__(
        self, inputs: int, width: int, stride: int, *, inflated: bool, block: bool, sdpa: bool
    ):
        super().__init__()
        outputs = 4 * width
        self.conv1 = _conv_module(inputs, width, (3 if inflated else 1, 1, 1))
        self.conv2 = _conv_module(width, width, (1, 3, 3), (1, stride, stride))
        self.conv3 = _conv_module(width, outputs, relu=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = _conv_module(inputs, outputs, stride=(1, stride, stride), relu=False)
        self.non_local_block = NonLocal3d(outputs, sdpa) if block else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.conv2(self.conv1(x)))
        y = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return y if self.non_local_block is None else self.non_local_block(y)


class ResNet3d(nn.Module):
    """The backbone of a config of ``create_model`` with the pools of mmaction2's I3D."""

    def __init__(self, config, sdpa: bool):
        super().__init__()
        width = config["width"]
        frames, stride = config["conv1_frames"], config["conv1_stride"]
        self.conv1 = _conv_module(3, width, (frames, 7, 7), (stride, 2, 2))
        self.maxpool = nn.MaxPool3d((1, 3, 3), (config["pool1_stride"], 2, 2), (0, 1, 1))
        pool2 = (config["pool2_frames"], 1, 1)
        self.pool2 = nn.MaxPool3d(pool2, pool2)
        inputs, self.stages = width, []
        stages = zip(config["stage_sizes"], config["strides"], strict=True)
        for stage, (size, stride) in enumerate(stages, start=1):
            blocks = []
            for index in range(size):
                place, stage_width = f"layer{stage}.{index}", width * 2 ** (stage - 1)
                options = {
                    "inflated": place in config["inflate_at"],
                    "block": place in config["block_at"],
                    "sdpa": sdpa,
                }
                blocks.append(Bottleneck(inputs, stage_width, 1 if index else stride, **options))
                inputs = 4 * stage_width
            self.stages.append(f"layer{stage}")
            setattr(self, self.stages[-1], nn.Sequential(*blocks))
        self.channels = inputs

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        for i, stage in enumerate(self.stages):
            x = getattr(self, stage)(x)
            if i == 0:
                x = self.pool2(x)
        return x


class VideoNet(nn.Module):
    """mmaction2's ``Recognizer3D`` for such a config."""

    def __init__(self, config, *, sdpa: bool = False):
        super().__init__()
        self.backbone = ResNet3d(config, sdpa)
        self.dropout = nn.Dropout(config["dropout"])
        classifier = nn.Linear(self.backbone.channels, config["num_classes"])
        self.cls_head = nn.ModuleDict({"fc_cls": classifier})

    def forward(self, clips: Tensor) -> Tensor:
        """``[B, 3, T, H, W]`` to logits ``[B, classes]``."""
        features = self.backbone(clips).mean((2, 3, 4))
        return self.cls_head["fc_cls"](self.dropout(features))

    def loss(self, clips: Tensor, labels: Tensor, config) -> tuple[Tensor, Tensor]:
        """The cross entropy and the accuracy."""
        del config  # it has no options for a softmax
        logits = self(clips)
        return F.cross_entropy(logits, labels), (logits.argmax(1) == labels).float().mean()
