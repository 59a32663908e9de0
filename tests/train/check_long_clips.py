"""Compiles the train steps of long clips for TPUs, and checks how their memory grows.

    make check-long-clips

Each report takes minutes. It is written to experiments/results. Reports that exist are kept: delete
those that are to be compiled again. The command writes a table of all reports. It exits with status
1 if a program has an attention matrix, or if the temporaries of 128 frames exceed 2.1 times those
of 64.
"""

import argparse
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
from typing import NamedTuple

GROWTH = 2.1


class Report(NamedTuple):
    """A report, and what its command sets. ``whole`` is whether all blocks relate all frames."""

    name: str
    frames: int
    whole: bool
    experiment: str = "nl_i3d_r50_5block_128f"
    topology: str = "v5e:2x4"
    batch_size: int = 8
    fields: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        # The maps of stage 2 have an eighth of the frames, so groups of 16 are whole clips.
        groups = (f"--config.model.group_frames={16 if self.whole else 4}",)
        return [
            f"--config=configs/video.py:{self.experiment}",
            f"--topology={self.topology}",
            f"--batch_size={self.batch_size}",
            f"--config.data.frames={self.frames}",
            "--config.model.dtype=bfloat16",
            "--config.model.block_implementation=flash",
            *(groups if self.experiment.endswith("_128f") else ()),
            *self.fields,
        ]


# With 32 frames, the maps of stage 2 have 4 frames: one group.
REPORTS = (
    Report("nl_i3d_r50_128f_whole", 128, whole=True),
    Report("nl_i3d_r50_64f_whole", 64, whole=True),
    Report("nl_i3d_r50_32f", 32, whole=True),
    Report("nl_i3d_r50_128f_groups", 128, whole=False),
    Report("nl_i3d_r50_64f_groups", 64, whole=False),
    Report("nl_i3d_r50_128f_whole_remat", 128, True, fields=("--config.train.remat=blocks",)),
    Report("nl_i3d_r50_128f_whole_context4", 128, True, fields=("--config.mesh.context=4",)),
    Report("nl_i3d_r50_128f_whole_v5p", 128, True, topology="v5p:2x2x1", batch_size=4),
    Report("nl_i3d_r101_32f", 32, True, experiment="nl_i3d_r101_5block_32f"),
)
RESULTS = pathlib.Path("experiments/results")


def attention_matrices(text: str, frames: int) -> list[str]:
    """Finds the arrays with an axis for all queries, and one for all keys, of a block.

    The axes of a matrix may be padded to multiples of 128 or 512, the tiles of the kernels.
    """
    pairs = set()
    for size in (28, 14):  # height and width of the maps; those of the keys are half as large
        queries, keys = (frames // 8 * n * n for n in (size, size // 2))
        pairs |= {(queries, keys), *((-(-queries // n) * n, -(-keys // n) * n) for n in (128, 512))}
    # Not matrices: maps of stage 3, which has 1024 channels, and kernels of stages 3 and 4.
    kernels = {(1024, 512), (2048, 512)}
    pairs = {pair for pair in pairs - kernels if pair[1] != 1024}
    shapes = {
        shape: {int(n) for n in shape.split(",")} for shape in re.findall(r"\[([\d,]+)\]", text)
    }
    return sorted(shape for shape, axes in shapes.items() if any(axes >= {*p} for p in pairs))


def compile_report(report: Report) -> dict:
    """Returns a report. It is compiled and written unless its file exists."""
    path = RESULTS / f"compile_{report.name}.json"
    if not path.exists():
        with tempfile.TemporaryDirectory() as directory:
            output, text = (pathlib.Path(directory, name) for name in ("step.json", "step.txt"))
            command = [sys.executable, "-m", "experiments.compile", *report.arguments]
            subprocess.run([*command, f"--output={output}", f"--text={text}"], check=True)
            result = json.loads(output.read_text())
            result["attention_matrices"] = attention_matrices(text.read_text(), report.frames)
        path.write_text(json.dumps(result, indent=2) + "\n")
    return json.loads(path.read_text())


def table(results: dict[Report, dict]) -> list[str]:
    """Formats the reports."""
    lines = [
        "Train steps of NL I3D, compiled for TPUs that this machine does not have: bfloat16, one",
        "clip of 224x224 pixels per chip, and the attention kernel in all blocks. Written by",
        "`make check-long-clips`. `compile_NAME.json` in this directory is the report. All numbers",
        "are per chip.",
        "",
        "| NAME | frames | topology | temporaries, MiB | peak, MiB | GFLOP | GB accessed |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for report, result in results.items():
        memory = [result["bytes_per_chip"][kind] / 2**20 for kind in ("temporaries", "peak")]
        costs = [result[f"{kind}_per_chip"] / 1e9 for kind in ("flops", "bytes_accessed")]
        numbers = " | ".join(f"{number:.0f}" for number in memory + costs)
        lines.append(f"| {report.name} | {report.frames} | {report.topology} | {numbers} |")
    lines += [
        "",
        "The command of each, after `python -m experiments.compile --output=FILE.json`:",
        "",
    ]
    lines += [f"- {r.name}: `{shlex.join(r.arguments)}`" for r in results]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="name of one report")
    only = parser.parse_args().only
    results = {}
    for report in REPORTS:
        if only in (None, report.name):
            results[report] = compile_report(report)
            print(report.name, results[report]["bytes_per_chip"], flush=True)
    if only is not None:
        return

    (RESULTS / "long_clips.md").write_text("\n".join(table(results)) + "\n")
    long, short = (results[report]["bytes_per_chip"]["temporaries"] for report in REPORTS[:2])
    if long > GROWTH * short or any(r["attention_matrices"] for r in results.values()):
        sys.exit("the memory grows too fast, or an attention matrix exists; see the reports")


if __name__ == "__main__":
    main()
