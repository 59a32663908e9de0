"""One process of a command, with small data and with faults.

    python -m tests.pods.member FAULTS train|evaluate FLAG...

FAULTS are in JSON: ``seconds_per_example`` and ``seconds_per_image`` make training and evaluation
slow, and ``seconds_per_save`` the end of a save. After ``unreadable`` reads, training examples are
damaged, and the file ``marker`` tells when. The read after ``stall`` reads takes
``seconds_of_stall``. ``data`` is the seed of other data. ``images`` is a file to which every
evaluated image appends the time when it began. The disk is full when the step ``full_disk_at`` is
saved. With ``data_of_config``, the data are those of the config. ``locks`` is a file whose
time is that of the attempt to lock the work directory. ``record`` is a directory for the saved and
restored states and the batches, with all their shards.
"""

import dataclasses
import errno
import itertools
import json
import math
import os
import pathlib
import runpy
import signal
import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from nonlocal_jax import tasks
from nonlocal_jax.convert import _checksums
from nonlocal_jax.errors import InputError
from nonlocal_jax.evaluation import predictor
from nonlocal_jax.evaluation._layout import lay_out
from nonlocal_jax.train import loop

# Number of examples. Their fingerprint reads the first, the last and the one in the middle.
TRAINING = 12


class Source(list):
    """Images of four squares. The red channel determines the class."""

    def __init__(self, number, faults):
        rng = np.random.default_rng(faults.get("data", 0))
        self._faults = dict(faults)
        self._reads = 0
        for i in range(number):
            label = np.kron(rng.integers(0, 3, (2, 2), np.uint8), np.ones((8, 8), np.uint8))
            image = rng.integers(0, 256, (16, 16, 3), np.uint8)
            image[..., 0] = 100 * label
            self.append({"image": image, "label": label, "id": i})

    def __getitem__(self, index):
        if len(self) == TRAINING:
            time.sleep(self._faults.get("seconds_per_example", 0))
            self._reads += 1
            if self._reads > self._faults.get("unreadable", math.inf):
                marker = pathlib.Path(self._faults["marker"])
                if not marker.exists():
                    marker.touch()
                raise InputError(f"street_{index}.png is damaged; replace the file")
            if self._reads == self._faults.get("stall"):
                time.sleep(self._faults["seconds_of_stall"])
        return super().__getitem__(index)


def _after(seconds, function):
    def wait_and_call(*arguments, **options):
        time.sleep(seconds)
        return function(*arguments, **options)

    return wait_and_call


def _full_at(step, function):
    def write(directory):
        if directory.name.partition(".")[0] == str(step):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
        return function(directory)

    return write


def _marking(path, function):
    def mark_and_call(*arguments):
        pathlib.Path(path).touch()
        return function(*arguments)

    return mark_and_call


def _record(directory):
    def write(name, tree):
        leaves = [
            jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
            for x in jax.tree.leaves(tree)
        ]
        leaves = multihost_utils.process_allgather(leaves, tiled=True)
        if jax.process_index() == 0:
            np.savez(f"{directory}/{name}", *leaves)

    save, restore, to_global = loop.Checkpoints.save, loop.Checkpoints.restore, loop.to_global
    steps = itertools.count(1)

    def recorded_save(checkpoints, state, scores=None):
        write(f"saved_{int(state.step)}", state)
        save(checkpoints, state, scores)

    def recorded_restore(checkpoints, target):
        nonlocal steps
        state = restore(checkpoints, target)
        if state is not None:
            write(f"restored_{int(state.step)}", state)
            steps = itertools.count(int(state.step) + 1)
        return state

    def recorded_batch(batch, shardings):
        arrays = to_global(batch, shardings)
        write(f"batch_{next(steps)}", arrays)
        return arrays

    loop.Checkpoints.save, loop.Checkpoints.restore = recorded_save, recorded_restore
    loop.to_global = recorded_batch


def main():
    # A shell that started the tests in the background ignores Ctrl-C in all of their processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faults, command, *options = sys.argv[1:]
    faults = json.loads(faults)

    def open_source(config, split, data_dir=None):
        return Source({"train": TRAINING, "val": 10}[split], faults)

    def slow_lay_out(image, *arguments):
        with open(faults["images"], "a") as file:
            print(time.time(), file=file)
        time.sleep(faults.get("seconds_per_image", 0))
        return lay_out(image, *arguments)

    task = dataclasses.replace(tasks.TASKS["segmentation"], open_source=open_source)
    if not faults.get("data_of_config"):
        tasks.TASKS["segmentation"] = task
    if "images" in faults:
        predictor.lay_out = slow_lay_out
    _checksums.write = _after(faults.get("seconds_per_save", 0), _checksums.write)
    if "full_disk_at" in faults:
        _checksums.write = _full_at(faults["full_disk_at"], _checksums.write)
    if "locks" in faults:
        loop.locked = _marking(faults["locks"], loop.locked)
    if "record" in faults:
        _record(faults["record"])
    sys.argv = [f"experiments.{command}", *options]
    runpy.run_module(f"experiments.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
