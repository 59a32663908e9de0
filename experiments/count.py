"""Counts the parameters and multiply-adds of video experiments, relative to a baseline.

    python -m experiments.count i3d_r101_baseline_32f i3d_r101_3x3x3_32f nl_c2d_r101_5block_32f

The command prints a Markdown table for a clip of 32 frames of 224x224 pixels. With these names, it
reproduces the relative numbers in table 2e of the NL paper. All parameters are counted, and the
multiply-adds of convolutions, linear layers and dense attention, products with padding included.
``--baseline`` is the experiment that the ratios refer to. No array is allocated.
"""

import re

import jax
import jax.numpy as jnp
from absl import flags

from experiments import cli
from nonlocal_jax.configs import video
from nonlocal_jax.errors import InputError
from nonlocal_jax.models import count_multiply_adds, create_model

_BASELINE = flags.DEFINE_string(
    "baseline", "c2d_r101_baseline_32f", "Experiment that the others are compared with."
)
_CLIP = flags.DEFINE_string("clip", "32x224x224", "Frames, height and width of the clip.")


def _count(name: str, clip: jax.ShapeDtypeStruct) -> tuple[int, int]:
    """Returns the number of parameters and of multiply-adds."""
    config = video.get_config(name).model
    if "block_implementation" in config:
        config.block_implementation = "dense"
    model = create_model(config)
    variables = jax.eval_shape(model.init, jax.random.key(0), clip)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return parameters, count_multiply_adds(model.apply, variables, clip)


def main(arguments: list[str]) -> None:
    size = re.fullmatch(r"(\d+)x(\d+)x(\d+)", _CLIP.value)
    if size is None:
        raise InputError(f"--clip is {_CLIP.value!r}; use FRAMESxHEIGHTxWIDTH, as in 32x224x224")
    clip = jax.ShapeDtypeStruct((1, *map(int, size.groups()), 3), jnp.float32)
    names = list(dict.fromkeys((_BASELINE.value, *arguments[1:])))
    counts = {name: _count(name, clip) for name in names}
    baseline = counts[_BASELINE.value]
    print("| experiment | parameters | ratio | multiply-adds (10^9) | ratio |")
    print("|---|---:|---:|---:|---:|")
    for name, (parameters, products) in counts.items():
        print(
            f"| {name} | {parameters:,} | {parameters / baseline[0]:.4f} "
            f"| {products / 1e9:.2f} | {products / baseline[1]:.4f} |"
        )


if __name__ == "__main__":
    cli.run(main, positional=True)
