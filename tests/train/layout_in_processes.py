"""One of two processes of a run: layout_in_processes.py ARGUMENTS WORKDIR DEVICES ADDRESS INDEX.

It also writes the rows of the first batches that its devices hold. The network is small, because
each process compiles it, and has dropout.
"""

import dataclasses
import pickle
import sys

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh

import nonlocal_jax as nlj
from nonlocal_jax.sharding import Shardings
from nonlocal_jax.train import loop
from tests.train import toy_task  # noqa: F401  # registers the task


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(16)(x))
        return nn.Dense(2)(nn.relu(x).mean(1))


def prepare(example, config, rng):
    noise = rng.standard_normal(example["signal"].shape, np.float32)
    return {**example, "signal": example["signal"] + noise}


nlj.models.NETWORKS["layout"] = Net
nlj.tasks.TASKS["layout"] = dataclasses.replace(nlj.tasks.TASKS["toy"], prepare=prepare)


def main(arguments, workdir, devices, address, index):
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.distributed.initialize(address, 2, int(index))
    with open(arguments, "rb") as file:
        config, examples = pickle.load(file)
    # The devices of the two processes alternate, so each process has every other part of a batch.
    grid = np.array(jax.devices()).reshape(2, -1).T.reshape(-1, 1)
    mesh = Mesh(grid, ("data", "context"), axis_types=(AxisType.Auto,) * 2)
    held, to_global = [], loop.to_global

    def recorded(batch, shardings):
        arrays = to_global(batch, shardings)
        if len(held) < 10:
            held.append(
                [
                    (name, shard.index[0].indices(config.data.batch_size), np.asarray(shard.data))
                    for name, array in arrays.items()
                    for shard in array.addressable_shards
                ]
            )
        return arrays

    loop.to_global = recorded
    loop.train(config, workdir, examples, shardings=Shardings(mesh))
    with open(f"{workdir}/held_{index}", "wb") as file:
        pickle.dump(held, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
