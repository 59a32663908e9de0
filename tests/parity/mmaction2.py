"""The real mmaction2 1.2.0 on PyTorch for the CPU, and the numbers that it gives."""

import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import formula
import numpy as np
import stubs

stubs.install("mmaction.models.localizers.drn.drn")  # missing in the wheel
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mmaction.models
    import torch
    from mmaction.registry import MODELS
    from mmaction.structures import ActionDataSample
    from mmcv.cnn.bricks.non_local import _NonLocalNd
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

# mmaction2's own configuration files.
CONFIGS = pathlib.Path(mmaction.__file__).parent / ".mim" / "configs"

# Our name of an experiment -> its file there.
_FILES = {
    "mmaction2_c2d_r50_16f": "c2d/c2d_r50-in1k-pre_8xb32-16x4x1-100e_kinetics400-rgb",
    "mmaction2_slowonly_nl_embedded_gaussian_r50_8f": (
        "slowonly/slowonly_r50-in1k-pre-nl-embedded-gaussian_8xb16-8x8x1-steplr-150e_kinetics400-rgb"
    ),
}
for _kind, _end, _frames in (("i3d", "8xb8-32x2x1-100e", 32), ("tsm", "8xb16-1x1x8-50e", 8)):
    for _mode in ("", "dot_product", "embedded_gaussian", "gaussian"):
        _ours = f"mmaction2_{_kind}{f'_nl_{_mode}' * bool(_mode)}_r50_{_frames}f"
        _block = f"-nl-{_mode.replace('_', '-')}" * bool(_mode)
        _FILES[_ours] = f"{_kind}/{_kind}_imagenet-pretrained-r50{_block}_{_end}_kinetics400-rgb"


def config_file(name: str) -> pathlib.Path:
    """Returns mmaction2's own config of an experiment of ours."""
    return CONFIGS / "recognition" / f"{_FILES[name]}.py"


def build(name: str, frames: int, changes: Mapping[str, Any]) -> torch.nn.Module:
    """A network from mmaction2's own config of an experiment, with weights from the formula.

    The running statistics are about those of a batch.

    Args:
      name: name of the experiment, as in ``configs/video.py``.
      frames: frames of a clip. The networks with shifts are built for one number of them.
      changes: options of ours to change: ``num_classes``, and for a narrow network ``width`` and
        ``stage_sizes``.
    """
    config = Config.fromfile(config_file(name)).model
    config.backbone.update(pretrained=None, pretrained2d=False)
    if config.backbone.type == "C2D":
        del config.backbone.pretrained2d
    if config.backbone.type == "ResNetTSM":
        config.backbone.num_segments = config.cls_head.num_segments = frames
    config.cls_head.update(num_classes=changes["num_classes"], dropout_ratio=0.0)
    init_default_scope("mmaction")
    model = MODELS.build(config)
    for stage, size in enumerate(changes.get("stage_sizes", ()), start=1):
        del getattr(model.backbone, f"layer{stage}")[size:]
    if "width" in changes:
        _narrow(model, changes["width"])
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = {key: torch.from_numpy(np.array(w)) for key, w in formula.state_dict(shapes).items()}
    model.load_state_dict(weights, strict=True)
    _calibrate(model, frames)
    return model.eval()


def _narrow(model: torch.nn.Module, width: int) -> None:
    """Reduces all channels from those of width 64. Some of the networks have no option for it."""

    def size(channels: int) -> int:
        return channels * width // 64 or channels  # the three colors remain

    for module in model.modules():
        for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            shape = tuple(size(n) if i < 2 else n for i, n in enumerate(value.shape))
            if isinstance(module, torch.nn.Linear):
                shape = (value.shape[0], *shape[1:])
            if value.is_floating_point():
                value.data = value.new_zeros(shape)
        if isinstance(module, _NonLocalNd):
            module.in_channels, module.inter_channels = map(
                size, (module.in_channels, module.inter_channels)
            )


def _calibrate(model: torch.nn.Module, frames: int) -> None:
    """Sets the running statistics to about those of a batch.

    With other statistics, features shrink from layer to layer until only the biases matter.
    Positions have about the same output of a non-local block, so there the variance is the mean of
    the squares. Otherwise the block would multiply each change of that output.
    """
    norms = {
        k: m
        for k, m in model.named_modules()
        if isinstance(m, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d)
    }
    for norm in norms.values():
        norm.momentum = 1.0  # replaces the statistics
    model.train()
    infer(model, formula.clips(2, frames, 64, 64))
    for name, norm in norms.items():
        norm.momentum = 0.1
        shift, factor = (
            torch.from_numpy(formula.uniform(f"{name}.{part}", norm.running_var.shape))
            for part in ("shift", "factor")
        )
        if "conv_out" in name:
            norm.running_var += norm.running_mean**2
        norm.running_mean += 0.4 * (shift - 0.5) * norm.running_var.sqrt()
        norm.running_var *= 0.8 + 0.4 * factor


def _inputs(model: torch.nn.Module, clips: np.ndarray) -> torch.Tensor:
    """``[B, T, C, H, W]``, or ``[B, 1, C, T, H, W]`` for networks with kernels over frames."""
    x = torch.from_numpy(np.ascontiguousarray(clips.transpose(0, 1, 4, 2, 3)))
    x = x.to(next(model.parameters()).dtype)
    return x if type(model).__name__ == "Recognizer2D" else x.transpose(1, 2)[:, None]


def infer(model: torch.nn.Module, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last feature map ``[B, T', h, w, C]``, and logits ``[B, classes]``."""
    with torch.no_grad():
        features, options = model.extract_feat(_inputs(model, clips))
        logits = model.cls_head(features, **options)
    if features.ndim == 4:  # frames are images of the batch
        features = features.unflatten(0, (len(clips), -1)).transpose(1, 2)
    return features.permute(0, 2, 3, 4, 1).numpy(), logits.numpy()


def train(
    model, clips, labels
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The loss, the gradient of every parameter and the new running statistics, in train mode.

    Keeps the running statistics of the model.
    """
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    model.train().zero_grad()
    samples = [ActionDataSample().set_gt_label(int(label)) for label in labels]
    loss = model.loss(_inputs(model, clips), samples)["loss_cls"]
    loss.backward()
    gradients = {key: p.grad.numpy().copy() for key, p in model.named_parameters()}
    statistics = {k: b.numpy().copy() for k, b in model.named_buffers() if "running" in k}
    with torch.no_grad():
        for key, value in model.named_buffers():
            value.copy_(buffers[key])
    model.eval()
    return {"loss": loss.item()}, gradients, statistics
