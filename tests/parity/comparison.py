"""What the comparisons of full-size networks share: distances, and the table of all networks."""

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch

import nonlocal_jax as nlj

Arrays = Mapping[str, np.ndarray]

# What is printed for every network, its bound, and what it means.
COMMON_BOUNDS = {
    "losses": 1e-8,
    "gradients": 1.0,
    "statistics": 1e-6,
    "f32 logits": 3.0,
    "f32 loss": 1e-5,
    "f32 grad norm": 1e-3,
    "export": 0,
    "reloaded": 0,
}
COMMON_LEGEND = """\
- `gradients`, float64: the largest ||a - b|| / (1e-6 ||b|| + 1e-10 ||g||) over all parameters, g
  the whole gradient; `statistics`: running means and variances after the step,
  max|a - b| / max|b|.
- `f32 logits`: distance to PyTorch's float64 logits, divided by PyTorch's own float32 distance.
- `f32 loss`, `f32 grad norm`: relative to PyTorch's float32.
- `export`: arrays that differ after export and import; `reloaded`: max|a - b| of PyTorch's logits
  with its own weights and with our export, loaded with strict=True.
"""


def distance(a, b) -> float:
    """max|a - b| / std(b)."""
    return float(np.max(np.abs(np.asarray(a) - b)) / np.std(b))


def compare_training(
    ours: tuple[dict, Any, Any], theirs: tuple[dict, Arrays, Arrays], model_config: Mapping
) -> dict[str, float]:
    """Compares losses, gradients and running statistics of one step. Ours are trees of Flax."""
    losses, gradients, statistics = theirs
    own = nlj.convert.to_torch({"params": ours[1]}, model_config)
    assert set(own) == set(gradients)
    own |= nlj.convert.to_torch({"batch_stats": ours[2]}, model_config)
    whole = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
    return {
        "losses": max(abs(ours[0][k] / v - 1) for k, v in losses.items()),
        "gradients": max(
            np.linalg.norm(own[k] - g) / (1e-6 * np.linalg.norm(g) + 1e-10 * whole)
            for k, g in gradients.items()
        ),
        "statistics": max(
            np.max(np.abs(own[k] - s)) / np.max(np.abs(s)) for k, s in statistics.items()
        ),
    }


def compare_training_float32(
    ours: tuple[dict, Any, Any], theirs: tuple[dict, Arrays, Arrays]
) -> dict[str, float]:
    """Compares losses, and the length of the whole gradient."""
    norms = [
        np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in tree))
        for tree in (jax.tree.leaves(ours[1]), theirs[1].values())
    ]
    return {
        "f32 loss": max(abs(ours[0][k] / v - 1) for k, v in theirs[0].items()),
        "f32 grad norm": abs(norms[0] / norms[1] - 1),
    }


def compare_export(
    reference: torch.nn.Module,
    logits: Callable[[], np.ndarray],
    variables: Mapping[str, Any],
    model_config: Mapping[str, Any],
    path: pathlib.Path,
) -> dict[str, float]:
    """Exports the variables. We read the export, and PyTorch in place of its own weights.

    Args:
      reference: the network of PyTorch.
      logits: returns its logits.
      variables: ours, with the same weights.
      model_config: our model config.
      path: file for the export.
    """
    nlj.convert.export_torch(path, variables, model_config)
    again = nlj.convert.load(path, model_config)
    differ = jax.tree.map(lambda a, b: a.tobytes() != b.tobytes(), dict(variables), again)
    before = logits()
    with torch.no_grad():
        for value in reference.state_dict().values():
            value.zero_()
    content = torch.load(path, weights_only=True)
    reference.load_state_dict(content["state_dict"], strict=True)
    return {
        "export": sum(jax.tree.leaves(differ)),
        "reloaded": np.max(np.abs(logits() - before)),
    }


def print_table(
    description: str,
    networks: Mapping[str, Sequence[Any]],
    columns: Sequence[str],
    bounds: Mapping[str, float],
    compare: Callable[..., Mapping[str, float]],
    legend: str,
    versions: str,
) -> None:
    """Compares the networks that the command line asks for. Exits with an error if a bound breaks.

    Args:
      description: of the command.
      networks: name -> what the ``columns`` contain.
      columns: titles of the columns between the name and the results.
      bounds: title of a result -> its bound.
      compare: gets a name, what its columns contain and an empty directory, and returns the results
        by title.
      legend: text below the table.
      versions: of the packages of PyTorch.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", default="", help="part of the names to run")
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file for the table")
    arguments = parser.parse_args()
    chosen = {name: cells for name, cells in networks.items() if arguments.only in name}
    titles = [*columns, *bounds]
    lines = [
        f"| network | {' | '.join(titles)} |",
        "|---" * (1 + len(titles)) + "|",
        f"| bound{' |' * len(columns)} | " + " | ".join(f"{b:g}" for b in bounds.values()) + " |",
    ]
    print("\n".join(lines), flush=True)
    broken = []
    for number, (name, cells) in enumerate(chosen.items(), 1):
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            result = compare(name, *cells, pathlib.Path(directory))
        texts = ["x".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in cells]
        texts += [f"{result[title]:.2g}" for title in bounds]
        lines.append(f"| {name} | {' | '.join(texts)} |")
        print(lines[-1], flush=True)
        print(f"{number}/{len(chosen)}, {time.monotonic() - start:.0f} s", file=sys.stderr)
        broken += [f"{name}: {t}" for t, bound in bounds.items() if not result[t] <= bound]
        jax.clear_caches()
    print(legend)
    if arguments.output:
        versions = f"jax {jax.__version__}, torch {torch.__version__}, {versions}, CPU"
        arguments.output.write_text("\n".join([*lines, legend, f"Measured with {versions}.", ""]))
    if broken:
        sys.exit("bounds broken: " + ", ".join(broken))
