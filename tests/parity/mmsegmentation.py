"""The real mmsegmentation 1.2.2 on PyTorch for the CPU, and the numbers that it gives."""

import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import formula
import numpy as np
import stubs

_FOLDERS = {"nonlocal": "nonlocal_net", "dnl": "dnlnet", "gcnet": "gcnet"}

stubs.install("mmcv.ops")  # compiled operators
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mmcv
    import mmseg.models
    import torch
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

# mmsegmentation's own configuration files.
CONFIGS = pathlib.Path(mmseg.__file__).parent / ".mim" / "configs"


def _without_sync(node: Any) -> None:
    """SyncBN asks for a process group; on one device BN is the same function."""
    children = node.values() if isinstance(node, dict) else node
    for child in children:
        if isinstance(child, (dict, list, tuple)):
            _without_sync(child)
    if isinstance(node, dict) and node.get("type") == "SyncBN":
        node["type"] = "BN"


def build(row: str, changes: Mapping[str, Any], align_corners: bool) -> torch.nn.Module:
    """A network from mmsegmentation's own config of a published row, with weights from the formula.

    Args:
      row: name of the experiment, as in ``configs/segmentation.py``.
      changes: options of ours to change: ``num_classes``, and for a narrow network ``width``,
        ``head_channels``, ``auxiliary_channels`` and ``stage_sizes``.
      align_corners: of both heads.
    """
    head, backbone, crop, schedule, dataset = row.split("_")
    batch = 2 if dataset == "cityscapes" else 4
    name = f"{head}_{backbone}_4xb{batch}-{schedule}_{dataset}-{crop}.py"
    config = Config.fromfile(CONFIGS / _FOLDERS[head] / name).model
    config.pretrained = config.data_preprocessor = None
    _without_sync(config)
    decode, auxiliary = config.decode_head, config.auxiliary_head
    decode.align_corners = auxiliary.align_corners = align_corners
    decode.dropout_ratio = auxiliary.dropout_ratio = 0.0
    decode.num_classes = auxiliary.num_classes = changes["num_classes"]
    if "width" in changes:
        width = config.backbone.base_channels = changes["width"]
        config.backbone.stem_channels = width
        decode.in_channels, auxiliary.in_channels = 32 * width, 16 * width
        decode.channels = changes["head_channels"]
        auxiliary.channels = changes["auxiliary_channels"]
    init_default_scope("mmseg")
    model = MODELS.build(config)
    if "stage_sizes" in changes:
        for stage, size in enumerate(changes["stage_sizes"], start=1):
            blocks = getattr(model.backbone, f"layer{stage}")
            del blocks[size:]
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights = {key: torch.from_numpy(np.array(w)) for key, w in formula.state_dict(shapes).items()}
    model.load_state_dict(weights, strict=True)
    return model.eval()


def _tensor(model: torch.nn.Module, images: np.ndarray) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(dtype)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def _infer(model, images, crop, stride) -> torch.Tensor:
    x = _tensor(model, images)
    size = images.shape[1:3]
    metas = [{"img_shape": size, "ori_shape": size, "pad_shape": size}] * len(images)
    with torch.no_grad():
        if crop is None:
            return model.encode_decode(x, metas)
        model.test_cfg.update(mode="slide", crop_size=crop, stride=stride)
        return model.slide_inference(x, metas)


def logits(model, images, crop=None, stride=None) -> np.ndarray:
    """Whole or slide logits ``[B, H, W, classes]``."""
    return _array(_infer(model, images, crop, stride))


def multi_scale(
    model, image, *, base_size, ratios, mean, std, crop=None, stride=None
) -> np.ndarray:
    """Probabilities ``[H, W, classes]`` by the protocol of ``--aug-test`` in mmsegmentation 0.x."""
    height, width = image.shape[:2]
    total = 0.0
    for ratio in ratios:
        scale = tuple(int(n * ratio) for n in base_size)
        scaled = mmcv.imrescale(image, scale)
        for flip in (False, True):
            x = scaled[:, ::-1] if flip else scaled
            x = (x.astype(np.float64) - mean) / std
            y = _infer(model, x[None], crop, stride)
            y = torch.nn.functional.interpolate(
                y, (height, width), mode="bilinear", align_corners=model.align_corners
            ).softmax(1)
            total = total + (y.flip(3) if flip else y)
    return _array(total / (2 * len(ratios)))[0]


def _losses(model, images, labels) -> dict[str, torch.Tensor]:
    samples = []
    for label in labels:
        sample = SegDataSample()
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(label.astype(np.int64))[None])
        samples.append(sample)
    losses = model.loss(_tensor(model, images), samples)
    decode, aux = losses["decode.loss_ce"], losses["aux.loss_ce"]
    return {"decode": decode, "aux": aux, "loss": decode + aux}


def train(model, images, labels) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Losses and the gradient of every parameter, in train mode; keeps the running statistics."""
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    model.train().zero_grad()
    losses = _losses(model, images, labels)
    losses["loss"].backward()
    gradients = {key: p.grad.numpy().copy() for key, p in model.named_parameters()}
    statistics = {k: b.numpy().copy() for k, b in model.named_buffers() if "running" in k}
    with torch.no_grad():
        for key, value in model.named_buffers():
            value.copy_(buffers[key])
    model.eval()
    return {name: loss.item() for name, loss in losses.items()}, gradients, statistics


def sgd(model, config, batches) -> list[float]:
    """Trains the model with a step per batch, in train mode. Returns the loss of each step.

    ``config`` is ours. The learning rate is that of mmsegmentation 0.x.
    """
    options, end = config.optimizer, config.schedule.end
    optimizer = torch.optim.SGD(
        model.parameters(),
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )
    losses = []
    model.train()
    for step, batch in enumerate(batches):
        rest = (1 - step / config.steps) ** config.schedule.power
        optimizer.param_groups[0]["lr"] = (options.learning_rate - end) * rest + end
        images = (batch["image"] - config.data.mean) / config.data.std
        loss = _losses(model, images, batch["label"])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def state_dict(model) -> dict[str, np.ndarray]:
    """A copy of the parameters and of the running means and variances."""
    state = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
