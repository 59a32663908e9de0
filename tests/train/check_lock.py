"""Starts two trainings in one work directory, in random orders and at random distances.

    python -m tests.train.check_lock [--starts=20]

One of the two must go on, and end with the parameters and the metrics of a run that was alone, bit
for bit. The other one must be refused with one message and status 2, or if it came after the end of
the first one, find the finished run. The script prints a table and exits with status 1 on failure.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import numpy as np

from configs import segmentation
from nonlocal_jax import convert

_NAME = "demo_fcn"
_OPTIONS = {"model.width": 8, "data.batch_size": 8, "steps": 24}
_TRAIN = {"train.log_every": 1, "train.checkpoint_every": 2, "train.evaluate_every": 24}


def _start(workdir: pathlib.Path, environment: dict[str, str]) -> subprocess.Popen:
    fields = [f"--config.{path}={value}" for path, value in (_OPTIONS | _TRAIN).items()]
    flags = [f"--workdir={workdir}", f"--config=configs/segmentation.py:{_NAME}", *fields]
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", "--distributed=off", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def _outcome(workdir: pathlib.Path) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """Returns the variables and the records of a run, without its times."""
    config = segmentation.get_config(_NAME)
    config.update_from_flattened_dict(_OPTIONS)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record.pop("train/examples_per_second", None)
        record.pop("train/data_wait", None)
    return convert.load(workdir, config.model), records


def check(directory: pathlib.Path, starts: int, seed: int = 0) -> bool:
    """Runs the trainings and prints a table. Returns whether all went well."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_COMPILATION_CACHE_DIR": str(directory / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    alone = _start(directory / "alone", environment)
    begin = time.monotonic()
    _, errors = alone.communicate()
    seconds = time.monotonic() - begin
    assert alone.returncode == 0, errors
    expected = _outcome(directory / "alone")

    rng, good = random.Random(seed), True
    print(f"alone: {seconds:.1f} s\n| start | distance s | statuses | refused | equal |")
    print("|---:|---:|---|---|---|")
    for start in range(starts):
        workdir = directory / str(start)
        # Many meet while they start. Without compilation a run is shorter than the first one.
        distance = rng.choice([0, rng.uniform(0, 1), rng.uniform(0, seconds / 3)])
        one = _start(workdir, environment)
        time.sleep(distance)
        other = _start(workdir, environment)
        ends = [process.communicate() for process in (one, other)]
        statuses = [process.returncode for process in (one, other)]
        refused = [err for (_, err), status in zip(ends, statuses, strict=True) if status == 2]
        named = all(
            err.count("\n") == 1 and f"another run uses {workdir} (process " in err
            for err in refused
        )
        finished_before = statuses == [0, 0] and "step 1/" not in ends[1][0]
        equal = _equal(_outcome(workdir), expected)
        good &= equal and named and (sorted(statuses) == [0, 2] or finished_before)
        answer = "after the end" if finished_before else f"{len(refused)}, named: {named}"
        print(f"| {start} | {distance:.2f} | {statuses} | {answer} | {equal} |", flush=True)
    print("passed" if good else "FAILED")
    return good


def _equal(run: tuple, expected: tuple) -> bool:
    try:
        np.testing.assert_equal(run, expected)
    except AssertionError:
        return False
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--starts", type=int, default=20)
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(not check(pathlib.Path(temporary), parser.parse_args().starts))
