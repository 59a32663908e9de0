"""One process of a command, with small data and with faults.

    python -m tests.pods.member FAULTS train|evaluate FLAG...

FAULTS are in JSON: ``seconds_per_example`` and ``seconds_per_image`` make training and evaluation
slow, and ``seconds_per_save`` the end of a save. ``unreadable`` is the index of a damaged example,
and ``marker`` a file that is made when it is read. The first read of the example ``stall`` takes
``seconds_of_stall``. ``data`` is the seed of other data. ``images`` is a file to which every
evaluated image appends the time when it began.
"""

import dataclasses
import json
import pathlib
import runpy
import sys
import time

import numpy as np

from nonlocal_jax import tasks
from nonlocal_jax.convert import _checksums
from nonlocal_jax.errors import InputError
from nonlocal_jax.evaluation import inference

# Number of examples. Their fingerprint reads the first, the last and the one in the middle.
TRAINING = 12


class Source(list):
    """Images of four squares. The red channel determines the class."""

    def __init__(self, number, faults):
        rng = np.random.default_rng(faults.get("data", 0))
        self._faults = dict(faults)
        for i in range(number):
            label = np.kron(rng.integers(0, 3, (2, 2), np.uint8), np.ones((8, 8), np.uint8))
            image = rng.integers(0, 256, (16, 16, 3), np.uint8)
            image[..., 0] = 100 * label
            self.append({"image": image, "label": label, "id": i})

    def __getitem__(self, index):
        if len(self) == TRAINING:
            time.sleep(self._faults.get("seconds_per_example", 0))
            if index == self._faults.get("unreadable"):
                pathlib.Path(self._faults["marker"]).touch()
                raise InputError(f"street_{index}.png is damaged; replace the file")
            if index == self._faults.get("stall"):
                del self._faults["stall"]
                time.sleep(self._faults["seconds_of_stall"])
        return super().__getitem__(index)


def _after(seconds, function):
    def wait_and_call(*arguments, **options):
        time.sleep(seconds)
        return function(*arguments, **options)

    return wait_and_call


def main():
    faults, command, *options = sys.argv[1:]
    faults = json.loads(faults)

    def open_source(config, split, data_dir=None):
        return Source({"train": TRAINING, "val": 10}[split], faults)

    def label_maps(predictor, variables):
        infer = original_label_maps(predictor, variables)

        def label_map(image):
            with open(faults["images"], "a") as file:
                print(time.time(), file=file)
            time.sleep(faults.get("seconds_per_image", 0))
            return infer(image)

        return label_map

    task = dataclasses.replace(tasks.TASKS["segmentation"], open_source=open_source)
    tasks.TASKS["segmentation"] = task
    if "images" in faults:
        original_label_maps = inference.Predictor.label_maps
        inference.Predictor.label_maps = label_maps
    _checksums.write = _after(faults.get("seconds_per_save", 0), _checksums.write)
    sys.argv = [f"experiments.{command}", *options]
    runpy.run_module(f"experiments.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
