"""Compares the rounding errors of blocks in half precision with PyTorch's mixed precision.

    PYTHONPATH=. .venv-parity/bin/python tests/parity/half_precision.py [--output=FILE.md]

One NL and one DNL block of the R-50 heads (512 channels, 48x48 positions) with the same random
weights. DNL divides its logits by 0.05, which amplifies the rounding of theta and phi by 20. Its
whitening subtracts the mean of each channel of theta and phi. The last rows have means of three
standard deviations, added by the biases. The error is the root mean square of the difference to
float64, relative to float64, of the residual branch (output minus input) without its mean over the
positions.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import mmsegmentation  # noqa: F401 - replaces mmcv's compiled operators
import numpy as np
import torch
from mmcv.cnn.bricks.non_local import NonLocal2d
from mmseg.models.decode_heads.dnl_head import DisentangledNonLocal2d

from nonlocal_jax.blocks import DisentangledNonLocalBlock, NonLocalBlock

CHANNELS, SIZE = 512, (48, 48)
BLOCKS = {
    "NL": (NonLocal2d, NonLocalBlock, {}),
    "DNL": (DisentangledNonLocal2d, DisentangledNonLocalBlock, {"temperature": 0.05}),
}


# Rows: block, standard deviation of theta and phi, mean of their channels in standard deviations.
ROWS = [
    ("NL", 0.5, 0.0),
    ("NL", 1.0, 0.0),
    ("DNL", 0.5, 0.0),
    ("DNL", 1.0, 0.0),
    ("DNL", 0.5, 3.0),
    ("DNL", 1.0, 3.0),
]


def make_reference(block: type, options: dict, spread: float, mean: float) -> torch.nn.Module:
    """PyTorch's block with random weights, whose theta and phi have this deviation and mean."""
    norm = {"norm_cfg": {"type": "BN"}}
    module = block(
        CHANNELS, reduction=2, use_scale=True, mode="embedded_gaussian", **norm, **options
    )
    generator = torch.Generator().manual_seed(0)
    for name, p in module.named_parameters():
        values = torch.randn(p.shape, generator=generator)
        fan_in = p[0].numel()
        gain = spread if name.split(".")[0] in ("theta", "phi") else 1.0
        p.data = values * (gain / fan_in**0.5 if p.ndim == 4 else 0.1) + ("bn.weight" in name)
        if name in ("theta.conv.bias", "phi.conv.bias"):
            p.data += mean * spread * torch.sign(values)
    return module.eval()


def our_variables(module: torch.nn.Module) -> dict:
    state = {k: v.double().numpy() for k, v in module.state_dict().items()}
    params = {}
    for name in ("g", "theta", "phi", "conv_out", "conv_mask"):
        stem = name if name == "conv_mask" else f"{name}.conv"
        if f"{stem}.weight" in state:
            params[name] = {"kernel": state[f"{stem}.weight"][:, :, 0, 0].T}
            if f"{stem}.bias" in state:
                params[name]["bias"] = state[f"{stem}.bias"]
    bn = {k: state[f"conv_out.bn.{v}"] for k, v in {"scale": "weight", "bias": "bias"}.items()}
    stats = {"mean": state["conv_out.bn.running_mean"], "var": state["conv_out.bn.running_var"]}
    return {"params": {**params, "norm": bn}, "batch_stats": {"norm": stats}}


def error(branch: np.ndarray, exact: np.ndarray) -> float:
    branch, exact = (b - b.mean((1, 2), keepdims=True) for b in (branch, exact))
    return float(np.linalg.norm(branch - exact) / np.linalg.norm(exact))


def compare(name: str, spread: float, mean: float) -> str:
    theirs, ours, options = BLOCKS[name]
    module = make_reference(theirs, options, spread, mean)
    variables = our_variables(module)
    rng = np.random.default_rng(0)
    # As behind a ReLU, and representable in every type.
    x = np.maximum(rng.standard_normal((1, *SIZE, CHANNELS)) + 0.5, 0).astype(np.float16)
    x = np.asarray(jnp.asarray(x, jnp.bfloat16).astype(np.float64))
    nchw = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))

    def torch_branch(dtype):
        if dtype is torch.float64:
            with torch.no_grad():
                y = module.double()(nchw)
            module.float()
        else:
            with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
                y = module(nchw.float())
        return y.double().numpy().transpose(0, 2, 3, 1) - x

    def our_branch(dtype):
        # What is added to a zero residual keeps the type it was computed in.
        block = ours(dtype=dtype, **options)
        return np.asarray(block.apply(variables, jnp.asarray(x)), np.float64) - x

    exact = torch_branch(torch.float64)
    assert error(our_branch(None), exact) < 1e-6  # mmsegmentation's temperature is a float32
    half = error(our_branch(jnp.bfloat16), exact)
    errors = [error(torch_branch(t), exact) for t in (torch.bfloat16, torch.float16)]
    return (
        f"| {name} | {spread} | {mean:g} | {half:.1e} | "
        + " | ".join(f"{e:.1e}" for e in errors)
        + " |"
    )


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=pathlib.Path)
    output = parser.parse_args().output
    lines = [
        "| block | std of theta, phi | mean / std | ours, bfloat16 | PyTorch, bfloat16 | "
        "PyTorch, float16 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in ROWS:
        lines.append(compare(*row))
        print(lines[-1], flush=True)
    versions = f"jax {jax.__version__}, torch {torch.__version__}"
    text = f"{__doc__.split(chr(10) * 2, 2)[2]}\n" + "\n".join(lines)
    text += f"\n\nMeasured with {versions}, CPU.\n"
    if output is not None:
        output.write_text(text)


if __name__ == "__main__":
    main()
