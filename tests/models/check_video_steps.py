"""Trains every video network for one step at full depth, on 8 CPU devices.

    make check-video

The batch has 8 random clips of 64x64 pixels, with 16 frames, or 64 for the networks for 128 frames.
Experiments with the same network have one row. The command writes a table, and exits with status 1
if a loss or a gradient is not finite, if a frozen array changes, or if another kernel or scale does
not.
"""

import argparse
import json
import math
import os
import pathlib
import re
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import jax
import numpy as np

from nonlocal_jax.configs import video
from nonlocal_jax.sharding import Shardings, make_mesh, to_global
from nonlocal_jax.train import create_experiment, create_state, make_train_step

_HEADER = """# One training step of every video network

`make check-video` writes this table. Each network is trained for one step at full depth on 8 CPU
devices, with one random clip of 64x64 pixels on each. Experiments with the same network have one
row. No residual branch and no block is the identity. "Changed" is the number of parameter arrays
that the step changed. Frozen arrays must not change, and all other kernels and scales must. Some
biases have no gradient, such as those that a batch norm subtracts again.

| experiment | frames | parameters | loss | gradient norm | changed | CPU seconds |
|---|---:|---:|---:|---:|---:|---:|
"""


def small(name):
    """Returns the config of an experiment with small clips."""
    config = video.get_config(name)
    frames = 64 if config.data.frames == 128 else 16
    config.data.update(batch_size=8, frames=frames, crop=64)
    return config


def random_variables(experiment):
    """Kernels keep the scale of features. Unlike those of ``init``, no scale of a norm is zero."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            return rng.standard_normal(leaf.shape, np.float32) / math.prod(leaf.shape[:-1]) ** 0.5
        return np.full(leaf.shape, {"var": 1.0, "mean": 0.0}.get(kind, 0.2), np.float32)

    inputs = experiment.example_inputs()
    shapes = jax.eval_shape(experiment.model.init, jax.random.key(0), inputs)
    return jax.tree.map_with_path(draw, shapes)


def random_batch(experiment, shardings):
    rng = np.random.default_rng(0)
    shapes = experiment.task.batch(experiment.config)
    high = {"clip": 256, "label": 2}  # 0 and 1 are labels of both losses
    batch = {k: rng.integers(high[k], size=s.shape).astype(s.dtype) for k, s in shapes.items()}
    return to_global(batch, shardings)


def arrays(params):
    paths = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in paths}


def check(name):
    """Trains for one step. Returns the row of the table and a list of problems."""
    start = time.process_time()
    config, shardings = small(name), Shardings(make_mesh())
    experiment = create_experiment(config)
    state = create_state(experiment, shardings, random_variables(experiment))
    before = arrays(state.params)
    batch = random_batch(experiment, shardings)
    state, metrics = make_train_step(experiment, shardings)(state, batch)
    after = arrays(state.params)
    seconds = time.process_time() - start

    loss, gradient = float(metrics["loss"]), float(metrics["grad_norm"])
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    frozen = {p for p in before if any(re.search(e, p) for e in config.optimizer.frozen)}
    problems = [f"{path} changed, but is frozen" for path in sorted(frozen & changed)]
    problems += [
        f"{path} did not change"
        for path in sorted(before.keys() - frozen - changed)
        if not path.endswith("bias")
    ]
    if not (math.isfinite(loss) and math.isfinite(gradient)):
        problems.append(f"the loss is {loss}, the norm of the gradient {gradient}")
    size = sum(x.size for x in before.values())
    row = (
        f"| {name} | {config.data.frames} | {size:,} | {loss:.3f} | {gradient:.3g} "
        f"| {len(changed)} of {len(before)} | {seconds:.0f} |"
    )
    return row, problems


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("names", nargs="*", default=video.NAMES)
    arguments = parser.parse_args()
    networks = {json.dumps(small(name).model.to_dict()): name for name in reversed(arguments.names)}
    rows, failed = [], False
    for name in reversed(networks.values()):
        row, problems = check(name)
        print(row, *problems, sep="\n", flush=True)
        rows.append(row)
        failed |= bool(problems)
        jax.clear_caches()
    arguments.output.write_text(_HEADER + "\n".join(rows) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
