"""Compiles the published networks for TPU pods, and writes one table of what they cost.

    python -m experiments.compile_table --output=experiments/results/compile

Each cell of the table is one command, `python -m experiments.compile ...`, and one JSON file in the
directory. Cells whose file exists are not compiled again, so an interrupted table goes on. The
table is README.md in the directory. A cell takes minutes, all of them take hours.
"""

import json
import pathlib
import shlex
import signal
import subprocess
import sys
from typing import Any, NamedTuple

from absl import flags

from experiments import cli
from nonlocal_jax._files import make_directory, write_file
from nonlocal_jax._progress import say
from nonlocal_jax.errors import InputError
from nonlocal_jax.topology import use_tpu_compiler
from nonlocal_jax.traffic import KINDS

_OUTPUT = flags.DEFINE_string("output", None, "Directory for the reports.", required=True)
_ONLY = flags.DEFINE_string("only", "", "Compile only the cells whose name contains this text.")

_HEADS = {"nonlocal": "NL", "dnl": "DNL", "gcnet": "GC"}
_BACKBONES = {"r50": "R-50", "r101": "R-101"}
_IMAGES = 40_000 * 8  # of the published schedule: its steps, and its batch


class Cell(NamedTuple):
    """One report. ``batch_size`` is one image per device, or None for the evaluation."""

    head: str
    backbone: str
    topology: str
    batch_size: int | None = None

    @property
    def name(self) -> str:
        step = "train" if self.batch_size else "evaluate"
        return f"{self.head}_{self.backbone}_{step}_{self.topology.replace(':', '_')}"

    @property
    def arguments(self) -> list[str]:
        """Arguments of ``experiments.compile``. A larger batch takes fewer steps."""
        name = f"{self.head}_{self.backbone}-d8_512x1024_40k_cityscapes"
        step = ["--step=evaluate"]
        if self.batch_size:
            step = [f"--batch-size={self.batch_size}"]
            step += [f"--config.steps={_IMAGES // self.batch_size}"]
        return [
            f"--config=configs/segmentation.py:{name}",
            "--config.model.dtype=bfloat16",
            f"--topology={self.topology}",
            *step,
        ]


CELLS = (
    Cell("nonlocal", "r50", "v5e:2x4", 8),
    Cell("nonlocal", "r50", "v5e:16x16", 256),
    Cell("nonlocal", "r50", "v5e:2x4"),
    Cell("dnl", "r50", "v5e:16x16", 256),
    Cell("gcnet", "r50", "v5e:16x16", 256),
    Cell("nonlocal", "r50", "v5p:4x4x4", 64),
    Cell("nonlocal", "r50", "v6e:16x16", 256),
    Cell("nonlocal", "r50", "tpu7x:2x2x2", 16),  # a chip has two devices
    Cell("nonlocal", "r101", "v5e:16x16", 256),
    Cell("dnl", "r101", "v5e:16x16", 256),
    Cell("gcnet", "r101", "v5e:16x16", 256),
)


def _compile(cell: Cell, path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "experiments.compile", *cell.arguments, f"--output={path}"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        message = f"\n{result.stderr}".rpartition("\nerror: ")[2].strip()[-2000:]
        if result.returncode < 0:
            name = signal.strsignal(-result.returncode)
            message = f"a signal ended the compiler ({name}) {message}".strip()
        raise InputError(f"{cell.name}: {message or 'the compiler ended without a message'}")


def render(reports: dict[Cell, dict[str, Any]]) -> str:
    """Formats the reports as Markdown."""
    lines = [
        "# Compiled for TPU pods",
        "",
        "Networks for 512x1024 (Cityscapes) in bfloat16, compiled for TPUs that this machine",
        "does not have. Nothing here was timed. Training has one image per device, evaluation one",
        "whole image of 1024x2048. The step time is that of the roofline: the part of the chip",
        "that limits it works at its peak all the time. The hours are those of the 320,000 images",
        "of the published schedule (40,000 steps of 8). A batch of 256 takes 1,250 steps for",
        "them, and nobody has shown that it reaches the same mIoU. Numbers are per chip, except",
        "images per second. `python -m experiments.compile_table --output=DIR` writes this file.",
        "",
        "| network | topology | step | batch | fits | peak, of memory (GiB) | TFLOP | HBM, GB "
        "| sent, MB | ms | limited by | images/s | per host | hours | chip-hours |",
        "|---|---|---|---:|---|---:|---:|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    lines += [_row(cell, report) for cell, report in reports.items()]
    fitting = {cell: report for cell, report in reports.items() if report["fits"]}
    lines += [
        "",
        "Where the bytes go: GB of HBM per chip and step, compiled / necessary. Necessary is a",
        "count by hand: each convolution, product, pool and kernel reads its operands and writes",
        "its result once, a batch norm reads its input five times, forward and backward, and the",
        "optimizer reads and writes its state. The compiler can need less where it keeps arrays in",
        "vector memory.",
        "",
        f"| | {' | '.join(KINDS)} | all |",
        f"|---|{'---:|' * (len(KINDS) + 1)}",
    ]
    lines += [_traffic_row(cell, report) for cell, report in fitting.items()]
    lines += ["", "The command of each, after `python -m experiments.compile --output=FILE.json`:"]
    lines += ["", *(f"- {cell.name}: `{shlex.join(cell.arguments)}`" for cell in reports)]
    return "\n".join(lines) + "\n"


def _label(cell: Cell) -> str:
    return f"{_HEADS[cell.head]} {_BACKBONES[cell.backbone]}"


def _row(cell: Cell, report: dict[str, Any]) -> str:
    sizes = report["bytes_per_chip"]
    cells = [_label(cell), report["topology"], report["step"], f"{report['batch_size']}"]
    if not report["fits"]:
        return f"| {' | '.join([*cells, 'no'])} |{' |' * 10}"
    roofline, rates = report["roofline"], report["throughput"]
    sent = sum(each["bytes"] for each in report["collectives_per_chip"].values())
    cells += [
        "yes",
        f"{sizes['peak'] / 2**30:.2f} of {sizes['memory'] / 2**30:.0f}",
        f"{report['flops_per_chip'] / 1e12:.2f}",
        f"{report['hbm_bytes_per_chip'] / 1e9:.1f}",
        f"{sent / 1e6:.0f}",
        f"{1000 * roofline['seconds']:.1f}",
        roofline["limited_by"],
        f"{rates['images_per_second']:,.0f}",
        f"{rates['images_per_second_and_host']:.0f}",
        *(f"{rates[name]:.3g}" if name in rates else "" for name in ("hours", "chip_hours")),
    ]
    return f"| {' | '.join(cells)} |"


def _traffic_row(cell: Cell, report: dict[str, Any]) -> str:
    kinds = report["traffic_per_chip"]
    pairs = [kinds.get(kind, {}) for kind in KINDS]
    pairs = [(pair.get("bytes") or 0, pair.get("necessary") or 0) for pair in pairs]
    pairs.append(tuple(map(sum, zip(*pairs, strict=True))))
    cells = [f"{moved / 1e9:.2f} / {needed / 1e9:.2f}" for moved, needed in pairs]
    label = f"{_label(cell)} {report['step']}, {report['topology']}"
    return f"| {label} | {' | '.join(cells)} |"


def main(_: list[str]) -> None:
    if not any(_ONLY.value in cell.name for cell in CELLS):
        names = "\n  ".join(cell.name for cell in CELLS)
        raise InputError(f"no cell has a name with {_ONLY.value!r}; the cells are\n  {names}")
    use_tpu_compiler()  # its messages, before hours of work
    directory = pathlib.Path(make_directory(_OUTPUT.value))
    reports = {}
    for number, cell in enumerate(CELLS, start=1):
        path = directory / f"{cell.name}.json"
        if not path.exists() and _ONLY.value in cell.name:
            say(f"{number}/{len(CELLS)} {cell.name}")
            _compile(cell, path)
        if path.exists():
            reports[cell] = json.loads(path.read_text())
            write_file(directory / "README.md", render(reports))


if __name__ == "__main__":
    cli.run(main)
