"""Runs with several processes and devices, and what happens to them.

    python -m tests.pods --output=experiments/results/pods.md
    python -m tests.pods --only="a quiet process 1"

Each scenario checks what it says, and measures it. The results are in a table. An interrupted
table goes on where it was: rows are kept in FILE.rows.jsonl until all scenarios have passed.
"""

import argparse
import json
import os
import pathlib
import platform
import sys
import tempfile
import time
import traceback

import jax

from tests.pods import checkpoints, evaluation, launch, processes, step

SCENARIOS = {
    **processes.SCENARIOS,
    **checkpoints.SCENARIOS,
    **launch.SCENARIOS,
    **step.SCENARIOS,
    **evaluation.SCENARIOS,
}

_HEAD = """# Runs with several processes and devices

`make pods` writes this table: {versions}, {cores} CPU cores. Every row starts real
commands in processes of this machine, with a heartbeat timeout of {heartbeat} s, checks the result,
and says what was measured.

| scenario | result | seconds |
|---|---|---:|
"""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=pathlib.Path, help="the table, in Markdown")
    parser.add_argument("--only", action="append", help="only scenarios whose name contains this")
    arguments = parser.parse_args()
    wanted = [
        name for name in SCENARIOS if not arguments.only or any(o in name for o in arguments.only)
    ]
    kept = arguments.output and arguments.output.with_suffix(".rows.jsonl")
    lines = kept.read_text().splitlines() if kept and kept.exists() else []
    rows = {row["scenario"]: row for row in map(json.loads, lines)}
    failed = []
    with tempfile.TemporaryDirectory() as directory:
        for number, name in enumerate(wanted):
            if name in rows:
                continue
            print(f"{number + 1}/{len(wanted)} {name} ...", end=" ", flush=True)
            begin = time.monotonic()
            place = pathlib.Path(directory, str(number))
            place.mkdir()
            try:
                result = SCENARIOS[name](place)
            except Exception:
                print("FAILED", flush=True)
                traceback.print_exc()
                failed.append(name)
                continue
            seconds = time.monotonic() - begin
            print(f"{result} ({seconds:.0f} s)", flush=True)
            rows[name] = {"scenario": name, "result": result, "seconds": round(seconds)}
            if kept:
                with kept.open("a") as file:
                    file.write(json.dumps(rows[name]) + "\n")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    if arguments.output and not arguments.only:
        head = _HEAD.format(
            versions=f"Python {platform.python_version()}, JAX {jax.__version__}",
            cores=os.cpu_count(),
            heartbeat=processes.HEARTBEAT,
        )
        cells = [(name, rows[name]["result"], rows[name]["seconds"]) for name in SCENARIOS]
        arguments.output.write_text(head + "".join(f"| {a} | {b} | {c} |\n" for a, b, c in cells))
        kept.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
