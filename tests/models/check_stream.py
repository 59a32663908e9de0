"""Compares a TSM of ResNet-50 on a stream with the same network on a clip, in float64.

    make check-stream

The weights are random. The stream is processed twice, with a reset between. The command writes a
table, and exits with status 1 if logits differ by more than 1e-10.
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

import nonlocal_jax as nlj
from tests.helpers import draw

BOUND = 1e-10
BATCH, FRAMES, SIZE = 1, 200, (64, 64)
STAGE_SIZES = (3, 4, 6, 3)
OPTIONS = {
    "network": "video",
    "num_classes": 400,
    "stage_sizes": STAGE_SIZES,
    "shift": "past",
    "shift_at": tuple(f"layer{s}.{i}" for s, n in enumerate(STAGE_SIZES, 1) for i in range(n)),
}


def network(options):
    """A network with random float64 variables."""
    model = nlj.create_model(options)
    clip = jax.ShapeDtypeStruct((1, 2, *SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), clip)
    return model, jax.tree.map(np.float64, draw(shapes))


def run(step, state, clips):
    """The last state, and the logits of all frames, ``[B, T, classes]``."""
    outputs = []
    for t in range(clips.shape[1]):
        state, logits = step(state, clips[:, t])
        outputs.append(logits)
    return state, np.stack(outputs, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    output = parser.parse_args().output

    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    model, variables = network(OPTIONS)
    reset, step = nlj.models.stream(model, variables)
    rows = []
    for name in ("first run", "after a reset"):
        clips = rng.standard_normal((BATCH, FRAMES, *SIZE, 3))
        _, logits = run(step, reset(BATCH, SIZE), clips)
        expected = jax.jit(model.apply, static_argnames="window")(
            variables, clips, window=(1, None, None)
        )[:, :, 0, 0]
        rows.append((name, np.abs(logits - expected).max(), np.std(expected)))

    state = jax.tree.leaves(reset(BATCH, SIZE))
    lines = [
        "Written by `make check-stream`. The logits of a TSM of ResNet-50 with random weights,",
        f"{SIZE[0]}x{SIZE[1]}, {FRAMES} frames, float64, of `nlj.models.stream`, compared with",
        "those of the same network on the whole clip.",
        "",
        "| | largest difference | standard deviation of the logits |",
        "|---|---:|---:|",
        *(f"| {name} | {error:.1e} | {std:.2f} |" for name, error, std in rows),
        "",
        f"The state has {len(state)} arrays with {sum(leaf.size for leaf in state)} numbers.",
        f"jax {jax.__version__}, Python {sys.version.split()[0]}.",
    ]
    output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    if not all(error <= BOUND for _, error, _ in rows):
        sys.exit("the logits differ")


if __name__ == "__main__":
    main()
