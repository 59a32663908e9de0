"""A run that is slow enough to be stopped: slow_run.py ARGUMENTS WORKDIR [ADDRESS PROCESS]."""

import importlib
import pickle
import sys
import time

import jax

from nonlocal_jax.tasks import get_task
from nonlocal_jax.train import train


class Slow(list):
    def __getitem__(self, index):
        time.sleep(0.02)
        return super().__getitem__(index)


arguments, workdir, *process = sys.argv[1:]
if process:
    jax.distributed.initialize(process[0], 2, int(process[1]))
with open(arguments, "rb") as file:
    config, examples, imports = pickle.load(file)
for module in imports:
    importlib.import_module(module)
evaluate = get_task(config).evaluator(config, examples[:2]) if process else None
result = train(config, workdir, Slow(examples), evaluate=evaluate)
print("stopped by", result.signal and result.signal.name, "at step", int(result.state.step))
