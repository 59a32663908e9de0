"""Builds the programs of PyTorch's variants of a case. Importing this module needs torch."""

import functools
from collections.abc import Callable

import jax
import torch

from experiments.benchmark import _pytorch_models as models
from experiments.benchmark import _pytorch_video
from experiments.benchmark._cases import BLOCKS, OPERATIONS, Case, Program
from experiments.benchmark._measure import cores
from experiments.benchmark._ours import network_config

DEVICE = "cuda" if jax.default_backend() == "gpu" else "cpu"

torch.set_num_threads(cores())
torch.backends.cudnn.benchmark = True
torch.set_float32_matmul_precision("high")  # TF32 on a GPU, the default of JAX


def _wait(_: object) -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _compile(function: Callable, variant: str) -> Callable:
    """Compiles a function for one shape, except in the eager variant."""
    if variant == "torch_eager":
        return function
    # On a GPU, max-autotune records CUDA graphs. The next call may overwrite their results.
    mode = "max-autotune" if DEVICE == "cuda" else None
    compiled = torch.compile(function, mode=mode, dynamic=False)

    def run(*args):
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*args)

    return run


def _random(case: Case, *shape: int) -> torch.Tensor:
    return (case.std * torch.randn(shape, device=DEVICE)).to(getattr(torch, case.dtype))


def _autocast(case: Case) -> torch.autocast:
    return torch.autocast(DEVICE, torch.bfloat16, enabled=case.dtype == "bfloat16")


def _layout(variant: str, axes: int = 2) -> torch.memory_format:
    """The layout of feature maps with this number of axes between batch and channels."""
    if variant == "torch_eager":
        return torch.contiguous_format
    return torch.channels_last if axes == 2 else torch.channels_last_3d


def _program(case: Case, function: Callable, inputs: list[torch.Tensor], *args) -> Program:
    """Makes a program that computes y, and the gradients of the inputs if ``case.backward``."""
    dy = None

    def run():
        nonlocal dy
        with torch.set_grad_enabled(case.backward), _autocast(case):
            y = function(*args)
        if not case.backward:
            return y
        if dy is None:
            dy = torch.randn_like(y)
        return y, torch.autograd.grad(y, inputs, dy)

    return Program(run, _wait)


def _operation(case: Case, variant: str) -> Program:
    operation = OPERATIONS[case.name]
    arrays = [
        _random(case, *shape).requires_grad_(case.backward)
        for shape in operation.shapes(case.batch_size, case.positions, case.channels)
    ]
    options = operation.options(case.channels)
    if variant in ("torch_sdpa", "torch_reassociated"):
        options[variant.removeprefix("torch_")] = True
    function = functools.partial(getattr(models, case.name), **options)
    return _program(case, _compile(function, variant), arrays, *arrays)


def _block(case: Case, variant: str) -> Program:
    module, _ = models.BLOCKS[BLOCKS[case.name]]
    block = module(2 * case.channels, sdpa=variant == "torch_sdpa")
    block = block.to(DEVICE, memory_format=_layout(variant)).train(case.backward)
    x = _random(case, case.batch_size, 2 * case.channels, *case.size)
    x = x.to(memory_format=_layout(variant)).requires_grad_(case.backward)
    return _program(case, _compile(block, variant), [*block.parameters(), x], x)


def _network(case: Case, variant: str) -> Program:
    config, layout = network_config(case), _layout(variant, len(case.size))
    make = _pytorch_video.VideoNet if case.is_video else models.SegmentationNet
    net = make(config.model, sdpa=variant == "torch_sdpa")
    net = net.to(DEVICE, memory_format=layout).train(case.backward)
    shape = (case.batch_size, 3, *case.size)
    if not case.backward:
        images = torch.randn(shape, device=DEVICE).to(memory_format=layout)
        return _program(case, _compile(net, variant), [], images)

    images = torch.randint(256, shape, device=DEVICE, dtype=torch.uint8)
    images = images.to(memory_format=layout)
    labels = shape[:1] if case.is_video else shape[:1] + case.size
    labels = torch.randint(config.model.num_classes, labels, device=DEVICE)
    mean, std = (
        torch.tensor(values, device=DEVICE).reshape(3, *[1] * len(case.size))
        for values in (config.data.mean, config.data.std)
    )
    loss_config, options = config.loss.to_dict(), config.optimizer
    compute = _compile(lambda i, y: net.loss((i - mean) / std, y, loss_config), variant)
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=options.learning_rate,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        fused=True,
    )

    def run():
        optimizer.zero_grad()
        with _autocast(case):
            loss, accuracy = compute(images, labels)
        loss.backward()
        optimizer.step()
        return loss, accuracy

    return Program(run, _wait)


def build(case: Case, variant: str) -> Program:
    """Builds one of the ``torch_`` variants of a case."""
    if case.is_network:
        return _network(case, variant)
    return (_block if case.name in BLOCKS else _operation)(case, variant)


def peak_mib(program: Program) -> float:
    """Returns the peak of the GPU memory over two calls, including inputs and parameters."""
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):  # the first one may record a CUDA graph
        program.wait(program.run())
    return torch.cuda.max_memory_allocated() / 2**20
