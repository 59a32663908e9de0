"""One of two processes that differ: two_processes.py DIRECTORY, see test_distributed.py."""

import os
import pathlib
import sys
import time

import jax
import numpy as np
import pytest

from nonlocal_jax import distributed
from nonlocal_jax.configs.common import base_config
from nonlocal_jax.errors import InputError
from nonlocal_jax.train import train
from nonlocal_jax.train._lock import locked
from tests.train import toy_task  # noqa: F401 (adds the task)

directory = pathlib.Path(sys.argv[1])
distributed.initialize("auto", heartbeat_timeout=5)
index = jax.process_index()
assert index == int(os.environ["JAX_PROCESS_ID"])
assert distributed.is_first() == (index == 0)
assert distributed.is_one_of_several()

# Values of any length, and errors, reach all processes.
assert distributed.gather(lambda: "x" * index) == ["", "x"]
assert distributed.from_first(lambda: [index, 1.5, None]) == [0, 1.5, None]


def fail():
    if index == 1:
        raise InputError("b.png is damaged")


with pytest.raises(InputError, match=r"^process 1: b.png is damaged$"):
    distributed.gather(fail)

# A run of processes that differ ends in all of them, before anything is compiled.
config = base_config("toy", task="toy", steps=2, learning_rate=0.1, weight_decay=0.0)
config.model = {"network": "toy"}
config.data.update(batch_size=2, cache=str(directory / "cache"))


def examples(value):
    example = {"signal": np.full((6, 2), value, np.float32), "label": np.zeros(1, np.int32)}
    return [{**example, "weight": np.ones(1, np.float32)}] * 4


own = directory / str(index)
for seed, value, workdir, message in (
    (index, 0, directory / "run", r"config.seed: 0 in process 0, 1 in 1"),
    (0, index, directory / "run", r"data: '\w+' in process 0, '\w+' in 1"),
    (0, 0, own, rf"{directory}/0 of process 0 on .* is not {directory}/1 of process 1"),
):
    config.seed = seed
    with pytest.raises(InputError, match=message):
        train(config, workdir, examples(value))
assert not (directory / "cache").exists()
with locked(directory / "run"):
    distributed.gather(lambda: None)
    with pytest.raises(InputError, match=rf"another run uses {directory}/run \(process \d+ on"):
        train(config, directory / "run", examples(0))
    distributed.gather(lambda: None)
assert not list((directory / "run").glob("checkpoints/*"))

print("agreed", flush=True)
if index == 1:
    raise RuntimeError("lost")
time.sleep(60)  # as in a step that waits for the other process
