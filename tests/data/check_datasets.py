"""Prepares, trains, kills, resumes, evaluates and predicts on every dataset, as a user would.

    make check-datasets

The archives are tiny copies of the real ones, with the same layout. Every command runs in its own
process. A run that is killed and resumed must end with the parameters of an undisturbed run of the
same layout, bit for bit. The command writes a table, and exits with status 1 if a check fails.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import numpy as np

from nonlocal_jax import convert
from tests.data import archives

STEPS = 12
KILL_AT = 5
LAYOUTS = [(processes, workers) for processes in (1, 2) for workers in (0, 2)]
# (processes, devices of each process)
DEVICES = ((1, 2), (2, 1), (2, 2))
DROPOUT_STEPS = 60

_SMALL = {
    "model.stage_sizes": (1, 1),
    "model.strides": (1, 1),
    "model.dilations": (1, 1),
    "model.width": 8,
    "model.head_channels": 16,
    "model.head_kernel_size": 1,
    "model.auxiliary_channels": 8,
    "data.batch_size": 4,
    "data.base_size": (128, 64),
    "data.crop": (32, 64),
    "evaluation.mode": "whole",
    "evaluation.base_size": (128, 64),
    "optimizer.learning_rate": 0.01,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "train.evaluate_every": STEPS,
}


class Case(NamedTuple):
    """A dataset, a published experiment on it, and further config fields."""

    dataset: str
    experiment: str
    fields: dict = {}


CASES = (
    Case("cityscapes", "nonlocal_r50-d8_512x1024_40k_cityscapes"),
    Case("ade20k", "dnl_r50-d8_512x512_80k_ade20k"),
    Case("voc12aug", "gcnet_r50-d8_512x512_20k_voc12aug"),
    Case("pascal_context59", "dnl_r101-d8_480x480_40k_pascal-context-59"),
    Case("pascal_context60", "dnl_r101-d8_480x480_40k_pascal-context-60"),
    Case(
        "folder",
        "nonlocal_r50-d8_512x512_20k_voc12aug",
        {"data.name": "own", "model.num_classes": 3},
    ),
)
# Runs a command in one of several processes: ADDRESS NUMBER INDEX MODULE FLAGS...
_IN_PROCESSES = """
import runpy, sys
import jax
address, number, index, module = sys.argv[1:5]
if int(number) > 1:
    jax.distributed.initialize(address, int(number), int(index))
sys.argv = [module, *sys.argv[5:]]
runpy.run_module(module, run_name="__main__")
"""


def start(module, *flags, processes=1, devices=1, cache=None):
    """Starts a command in so many processes, with so many CPU devices each."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(cache or ""),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", _IN_PROCESSES, address, str(processes), str(index)]
            + [f"experiments.{module}", *flags],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]


def run(*arguments, **options):
    """Runs a command to its end, and returns what process 0 printed."""
    processes = start(*arguments, **options)
    ends = [process.communicate() for process in processes]
    for process, (out, err) in zip(processes, ends, strict=True):
        if process.returncode:
            raise RuntimeError(f"{arguments}: status {process.returncode}\n{out}\n{err}")
    return ends[0][0]


def run_and_kill(*arguments, **options):
    """Kills a training with SIGKILL after ``KILL_AT`` steps. Returns the last step it printed."""
    processes = start(*arguments, **options)
    for line in processes[0].stdout:
        if line.startswith(f"step {KILL_AT}/"):
            break
    for process in processes:
        process.send_signal(signal.SIGKILL)
    rest = [process.communicate()[0] for process in processes][0]
    if any(process.returncode != -signal.SIGKILL for process in processes):
        raise RuntimeError(f"{arguments}: ended before it was killed")
    return max([KILL_AT, *(int(step) for step in re.findall(r"^step (\d+)/", rest, re.M))])


def train_flags(case, workdir, data_dir, steps=STEPS, **fields):
    fields = {**_SMALL, **case.fields, "steps": steps, **fields}
    return (
        f"--config=configs/segmentation.py:{case.experiment}",
        f"--workdir={workdir}",
        f"--data-dir={data_dir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    )


def parameters(workdir):
    config = json.loads((workdir / "config.json").read_text())
    return jax.tree.leaves(convert.load(workdir, config["model"]))


def check_case(case, directory, data_dir, cache):
    """Checks every layout of a dataset, and yields the rows of the table."""
    source = archives.ARCHIVES[case.dataset](directory / "archive")
    name = [f"--name={case.fields['data.name']}"] if case.dataset == "folder" else []
    run("prepare", case.dataset, *name, f"--source={source}", f"--data-dir={data_dir}", "--partial")
    images = [source / f"photograph_{i}.png" for i in range(3)]
    for i, path in enumerate(images):
        archives.write(path, archives.random_image(i, (50 + i, 90)))
    for processes, workers in LAYOUTS:
        layout = {"processes": processes, "cache": cache}
        name = f"{processes}_{workers}"
        fields = {"data.workers": workers}
        if workers:
            fields["data.cache"] = data_dir / "cache"
        whole, killed = directory / f"whole_{name}", directory / f"killed_{name}"
        run("train", *train_flags(case, whole, data_dir, **fields), **layout)
        flags = train_flags(case, killed, data_dir, **fields)
        at = run_and_kill("train", *flags, **layout)
        out = run("train", *flags, **layout)
        resumed = re.search(r"from step (\d+) of", out)
        equal = all(map(np.array_equal, parameters(whole), parameters(killed)))
        # The run of the folder knows its own classes: the pictures need no data.
        model = flags[:1] + tuple(flag for flag in flags if flag.startswith("--config."))
        checkpoint = f"--checkpoint={killed}"
        metrics, pictures = directory / f"metrics_{name}", directory / f"pictures_{name}"
        data = f"--data-dir={data_dir}"
        run("evaluate", *model, checkpoint, f"--output={metrics}", data, processes=processes)
        run("predict", *model, checkpoint, f"--output={pictures}", *map(str, images))
        miou = json.loads((metrics / "metrics.json").read_text())["miou"]
        complete = len(list(pictures.iterdir())) == 2 * len(images)
        ok = equal and complete and resumed is not None and miou is not None
        yield (
            (
                case.dataset,
                case.experiment,
                processes,
                workers,
                f"{at} -> {resumed[1] if resumed else '?'}",
                "equal" if equal else "DIFFERENT",
                f"{100 * miou:.1f}",
                f"{len(images)} of {len(images)}" if complete else "MISSING",
            ),
            ok,
        )


def check_dropout(directory, data_dir, cache):
    """Returns the losses with dropout of each layout of ``DEVICES``, and whether they agree."""
    losses = []
    for processes, devices in DEVICES:
        workdir = directory / f"dropout_{processes}_{devices}"
        flags = train_flags(CASES[0], workdir, data_dir, DROPOUT_STEPS)
        run("train", *flags, processes=processes, devices=devices, cache=cache)
        records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        losses.append([r["train/loss"] for r in records if "train/loss" in r])
    losses = np.array(losses)
    error = np.max(np.abs(losses / losses[0] - 1), axis=1)
    return error, losses.shape[1] == DROPOUT_STEPS and error.max() <= 1e-5


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--only", help="the name of one dataset")
    options = parser.parse_args()
    start_time, rows, ok = time.monotonic(), [], True
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        data_dir, cache = directory / "data", directory / "programs"
        for case in CASES:
            if options.only in (None, case.dataset):
                for row, good in check_case(case, directory / case.dataset, data_dir, cache):
                    print(*row, f"{time.monotonic() - start_time:.0f} s", flush=True)
                    rows.append(row)
                    ok &= good
        error, agree = check_dropout(directory, data_dir, cache)
    lines = [
        "# Datasets, processes and workers",
        "",
        "`make check-datasets` writes this table. Each row is a run on a tiny copy of an archive,",
        "with the commands `prepare`, `train`, `evaluate` and `predict`. A second run of the same",
        "layout was killed with SIGKILL and resumed. Its parameters must be those of the first run,",
        "bit for bit. With workers, the examples come from `data.cache`. `predict` gets no data. The",
        f"networks are small and are trained for {STEPS} steps: the mean IoU only shows that",
        "`evaluate` ran.",
        "",
        "| dataset | experiment | processes | workers | killed after step -> resumed from | parameters "
        "| mIoU | pictures |",
        "|---|---|---:|---:|---|---|---:|---|",
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
        "",
        f"With dropout, {DROPOUT_STEPS} steps on {CASES[0].dataset}, the largest relative",
        "difference of a loss from that of the first row:",
        "",
        "| processes | devices of each | largest difference |",
        "|---:|---:|---:|",
        *(f"| {p} | {d} | {e:.1e} |" for (p, d), e in zip(DEVICES, error, strict=True)),
        "",
        f"jax {jax.__version__}, Python {sys.version.split()[0]}.",
    ]
    options.output.write_text("\n".join(lines) + "\n")
    if not (ok and agree):
        sys.exit("a check failed; see the table")


if __name__ == "__main__":
    main()
