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
import types
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from nonlocal_jax import convert
from tests.data import archives, movies

STEPS = 12
KILL_AT = 5
# (processes, devices of each process)
DEVICES = ((1, 2), (2, 1), (2, 2))
DROPOUT_STEPS = 60

_SMALL = {
    "model.width": 8,
    "data.batch_size": 4,
    "optimizer.learning_rate": 0.01,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "train.evaluate_every": STEPS,
}


def _write_image(path, seed):
    archives.write(path, archives.random_image(seed, (50 + seed, 90)))


def _write_video(path, seed):
    movies.write(path, movies.video(9 + seed, seed=seed))


class Kind(NamedTuple):
    """What datasets of images, or of videos, have in common.

    Attributes:
      configs: The file of the experiments.
      archives: Writes a tiny copy of the archive of each dataset.
      fields: Config fields of small networks.
      can_cache: Whether ``data.cache`` can be used.
      layouts: Numbers of processes, and of workers of each process.
      name: Pattern of the names of the files that are predicted.
      write: Writes such a file.
    """

    configs: str
    archives: Mapping[str, Callable]
    fields: Mapping[str, object]
    can_cache: bool
    layouts: Sequence[tuple[int, int]]
    name: str
    write: Callable


_IMAGES = Kind(
    "segmentation",
    archives.ARCHIVES,
    {
        "model.stage_sizes": (1, 1),
        "model.strides": (1, 1),
        "model.dilations": (1, 1),
        "model.head_channels": 16,
        "model.head_kernel_size": 1,
        "model.auxiliary_channels": 8,
        "data.base_size": (128, 64),
        "data.crop": (32, 64),
        "evaluation.mode": "whole",
        "evaluation.base_size": (128, 64),
    },
    True,
    ((1, 0), (1, 2), (2, 0), (2, 2)),
    "photograph_{}.png",
    _write_image,
)
_VIDEOS = Kind(
    "video",
    movies.ARCHIVES,
    {
        "model.stage_sizes": (1, 1),
        "model.strides": (1, 2),
        "model.block_at": ("layer2.0",),
        "data.frames": 8,
        "data.short_side": (36, 40),
        "data.crop": 32,
        "evaluation.short_side": 36,
        "evaluation.crop": 36,
    },
    False,
    ((1, 0), (2, 2)),
    "movie_{}.mp4",
    _write_video,
)


class Case(NamedTuple):
    """A dataset, a published experiment on it, and further config fields."""

    kind: Kind
    dataset: str
    experiment: str
    fields: Mapping[str, object] = types.MappingProxyType({})


_I3D = {"model.inflate_at": ("layer1.0",), "evaluation.window": (0, 2, 2)}
CASES = (
    Case(_IMAGES, "cityscapes", "nonlocal_r50-d8_512x1024_40k_cityscapes"),
    Case(_IMAGES, "ade20k", "dnl_r50-d8_512x512_80k_ade20k"),
    Case(_IMAGES, "voc12aug", "gcnet_r50-d8_512x512_20k_voc12aug"),
    Case(_IMAGES, "pascal_context59", "dnl_r101-d8_480x480_40k_pascal-context-59"),
    Case(_IMAGES, "pascal_context60", "dnl_r101-d8_480x480_40k_pascal-context-60"),
    Case(
        _IMAGES,
        "folder",
        "nonlocal_r50-d8_512x512_20k_voc12aug",
        {"data.name": "own", "model.num_classes": 3},
    ),
    Case(
        _VIDEOS,
        "kinetics400",
        "nl_i3d_r50_5block_32f",
        {
            **_I3D,
            "model.num_classes": 3,
            "model.norm_group_size": 2,
            "train.precise_batch_norm": 2,
        },
    ),
    Case(
        _VIDEOS,
        "charades",
        "charades_nl_i3d_r101_128f",
        {**_I3D, "model.group_at": ("layer2.0",)},
    ),
    Case(
        _VIDEOS,
        "video_folder",
        "mmaction2_tsm_nl_embedded_gaussian_r50_8f",
        {
            "data.name": "own_videos",
            "model.num_classes": 2,
            "model.norm_group_size": 2,
            "model.shift_at": ("layer1.0", "layer2.0"),
        },
    ),
)
_HEADER = f"""# Datasets, processes and workers

`make check-datasets` writes this table. Each row is a run on a tiny copy of an archive, with the
commands `prepare`, `train`, `evaluate` and `predict`. A second run of the same layout was killed
with SIGKILL and resumed. Its parameters must be those of the first run, bit for bit. With workers,
the images come from `data.cache`, which videos do not have. `predict` gets three files and no data.
The networks are small and are trained for {STEPS} steps: the metric only shows that `evaluate` ran.

"""
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
            [
                *(sys.executable, "-c", _IN_PROCESSES),
                *(address, str(processes), str(index)),
                *(f"experiments.{module}", *flags),
            ],
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
    rest, *_ = [process.communicate()[0] for process in processes]
    if any(process.returncode != -signal.SIGKILL for process in processes):
        raise RuntimeError(f"{arguments}: ended before it was killed")
    return max([KILL_AT, *(int(step) for step in re.findall(r"^step (\d+)/", rest, re.M))])


def train_flags(case, workdir, data_dir, steps=STEPS, **fields):
    fields = {**_SMALL, **case.kind.fields, **case.fields, "steps": steps, **fields}
    return (
        f"--config=configs/{case.kind.configs}.py:{case.experiment}",
        f"--workdir={workdir}",
        f"--data-dir={data_dir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    )


def parameters(workdir):
    config = json.loads((workdir / "config.json").read_text())
    return jax.tree.leaves(convert.load(workdir, config["model"]))


def check_case(case, directory, data_dir, cache):
    """Checks every layout of a dataset, and yields the rows of the table."""
    source = case.kind.archives[case.dataset](directory / "archive")
    name = [f"--name={case.fields['data.name']}"] if "data.name" in case.fields else []
    run("prepare", case.dataset, *name, f"--source={source}", f"--data-dir={data_dir}", "--partial")
    files = [directory / case.kind.name.format(i) for i in range(3)]
    for i, path in enumerate(files):
        case.kind.write(path, i)
    for processes, workers in case.kind.layouts:
        layout = {"processes": processes, "cache": cache}
        name = f"{processes}_{workers}"
        fields = {"data.workers": workers}
        if workers and case.kind.can_cache:
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
        run("evaluate", *model, checkpoint, f"--output={metrics}", data, **layout)
        run("predict", *model, checkpoint, f"--output={pictures}", *map(str, files), cache=cache)
        values = json.loads((metrics / "metrics.json").read_text())
        metric, value = next((m, values[m]) for m in ("miou", "map", "top1") if m in values)
        complete = len(list(pictures.iterdir())) == 2 * len(files)
        ok = equal and complete and resumed is not None and value is not None
        yield (
            (
                case.dataset,
                case.experiment,
                processes,
                workers,
                f"{at} -> {resumed[1] if resumed else '?'}",
                "equal" if equal else "DIFFERENT",
                f"{metric} {100 * value:.1f}",
                f"{len(files)} of {len(files)}" if complete else "MISSING",
            ),
            ok,
        )


def check_dropout(case, directory, data_dir, cache):
    """Returns how much the losses with dropout of each layout differ, and whether they agree."""
    losses = []
    for processes, devices in DEVICES:
        workdir = directory / f"dropout_{processes}_{devices}"
        flags = train_flags(case, workdir, data_dir, DROPOUT_STEPS)
        run("train", *flags, processes=processes, devices=devices, cache=cache)
        records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        losses.append([r["train/loss"] for r in records if "train/loss" in r])
    losses = np.array(losses)
    error = np.max(np.abs(losses / losses[0] - 1), axis=1)
    return error, losses.shape[1] == DROPOUT_STEPS and error.max() <= 1e-5


def _table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs="+", help="the names of datasets")
    options = parser.parse_args()
    start_time, rows, ok = time.monotonic(), [], True
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        data_dir, cache = directory / "data", directory / "programs"
        cases = [case for case in CASES if case.dataset in (options.only or [case.dataset])]
        for case in cases:
            for row, good in check_case(case, directory / case.dataset, data_dir, cache):
                print(*row, f"{time.monotonic() - start_time:.0f} s", flush=True)
                rows.append(row)
                ok &= good
        error, agree = check_dropout(cases[0], directory, data_dir, cache)
    columns = (
        "dataset",
        "experiment",
        "processes",
        "workers",
        "killed after step -> resumed from",
        "parameters",
        "metric in %",
        "pictures",
    )
    lines = [
        *_table(columns, rows),
        "",
        f"The largest relative difference of a loss from that of the first row, in {DROPOUT_STEPS}",
        f"steps with dropout on {cases[0].dataset}:",
        "",
        *_table(
            ("processes", "devices of each", "largest difference"),
            [(*layout, f"{e:.1e}") for layout, e in zip(DEVICES, error, strict=True)],
        ),
        "",
        f"jax {jax.__version__}, Python {sys.version.split()[0]}.",
    ]
    options.output.write_text(_HEADER + "\n".join(lines) + "\n")
    if not (ok and agree):
        sys.exit("a check failed; see the table")


if __name__ == "__main__":
    main()
