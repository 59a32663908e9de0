"""Single blocks against the modules of mmcv and mmsegmentation, in float64.

    PYTHONPATH=. .venv-parity/bin/python tests/parity/blocks.py

Each module of PyTorch gets random weights, ``nonlocal_jax.convert`` turns its state dict into the
variables of a block, and the branches (output minus input) are compared. Fails if they differ by
more than 1e-12 of their largest value, or if the state dict is not the same after the way back.
"""

import sys

import jax
import jax.numpy as jnp
import mmsegmentation  # noqa: F401 - replaces mmcv's compiled operators
import numpy as np
import torch
from mmcv.cnn import ContextBlock
from mmcv.cnn.bricks import non_local
from mmseg.models.decode_heads.dnl_head import DisentangledNonLocal2d

from nonlocal_jax import blocks, convert
from nonlocal_jax.blocks.non_local import MODES

BOUND = 1e-12
CHANNELS, SIZE = 32, (4, 6, 8)

# Block, module of PyTorch, number of axes.
BLOCKS = [
    (
        blocks.NonLocalBlock(mode=mode, sub_sample=sub_sample, **norm),
        getattr(non_local, f"NonLocal{ndim}d")(
            CHANNELS, mode=mode, sub_sample=sub_sample, norm_cfg=None if norm else {"type": bn}
        ),
        ndim,
    )
    for mode in MODES
    for ndim, bn, norm in ((1, "BN1d", {}), (2, "BN", {}), (3, "BN3d", {}), (2, "", {"norm": None}))
    for sub_sample in (False, True)
]
BLOCKS += [
    (
        blocks.DisentangledNonLocalBlock(),
        DisentangledNonLocal2d(CHANNELS, temperature=0.05, norm_cfg={"type": "BN"}),
        2,
    ),
    (
        blocks.GlobalContextBlock(fusion=("add", "multiply")),
        ContextBlock(CHANNELS, 0.25, fusion_types=("channel_add", "channel_mul")),
        2,
    ),
    (blocks.GlobalContextBlock(pooling="average"), ContextBlock(CHANNELS, 0.25, "avg"), 2),
]


def compare(block, module: torch.nn.Module, ndim: int, rng: np.random.Generator) -> float:
    for key, value in module.eval().state_dict().items():
        if value.is_floating_point():
            fan_in = value[0].numel()
            weights = rng.uniform(0.5, 1.5, value.shape) / fan_in**0.5
            signs = 1 if key.endswith("running_var") else rng.choice([-1, 1], value.shape)
            value.copy_(torch.from_numpy(signs * weights))
    state_dict = {
        key: value.numpy().copy()
        for key, value in module.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    variables = convert.block_from_torch(state_dict, block)
    again = convert.block_to_torch(variables, block, ndim)
    assert again.keys() == state_dict.keys()
    assert all(np.array_equal(again[key], value) for key, value in state_dict.items())

    x = rng.normal(size=(2, CHANNELS, *SIZE[-ndim:]))
    with torch.no_grad():
        expected = np.moveaxis(module.double()(torch.from_numpy(x)).numpy() - x, 1, -1)
    with jax.enable_x64(True):
        x = jnp.asarray(np.moveaxis(x, 1, -1))
        variables = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), variables)
        actual = np.asarray(jax.jit(block.apply)(variables, x) - x)
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def main() -> None:
    rng = np.random.default_rng(0)
    broken = False
    print(f"| module | options | difference (bound {BOUND:g}) |\n|---|---|---|")
    for block, module, ndim in BLOCKS:
        difference = compare(block, module, ndim, rng)
        broken |= not difference <= BOUND
        names = ("mode", "sub_sample") if hasattr(block, "mode") else ("pooling", "fusion")
        options = ", ".join(str(getattr(block, name)) for name in names)
        norm = ", no norm" if block.norm is None else ""
        print(f"| {type(module).__name__} | {options}{norm} | {difference:.2g} |", flush=True)
    if broken:
        sys.exit(f"differences of more than {BOUND:g}")


if __name__ == "__main__":
    main()
