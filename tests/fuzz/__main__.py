"""Reads damaged and hostile files, and writes a table of what happened.

    python -m tests.fuzz --output=experiments/results/fuzzing.md
    python -m tests.fuzz --kind=zip --case=7 --keep=case.pth      # one case, in this process

A file may be read, or refused with one ``InputError``, within 10 seconds of processor time and
2 GiB. Anything else is listed, and the exit status is 1. The files depend only on --seed.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

from tests.fuzz import workers
from tests.fuzz.kinds import KINDS, cached

_HEAD = """# Damaged and hostile files

`make fuzz` writes this table. A file may be read, or refused with one error message. Anything else
is a failure: another exception, a crash, more than {seconds} seconds of processor time, or more
than {memory} GiB beyond what the libraries take. "Hostile" files were written to break a reader.
The others are damaged or drawn at random, with seed {seed}. To read one case again:
`python -m tests.fuzz --kind=KIND --case=NUMBER --keep=FILE`.
{note}
| kind | cases | hostile | loaded | refused | failures | slowest, s | most memory, MiB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""


def row(kind: str, results: Sequence[workers.Result]) -> str:
    """Returns the row of the table for one kind."""
    loaded, refused = (sum(r.outcome == o for r in results) for o in ("loaded", "refused"))
    cells = [
        kind,
        f"{len(results):,}",
        f"{sum(r.name != 'random' for r in results):,}",
        f"{loaded:,}",
        f"{refused:,}",
        f"{sum(r.failed for r in results):,}",
        f"{max(r.seconds for r in results):.1f}",
        f"{max(r.memory for r in results) / 2**20:,.0f}",
    ]
    return f"| {' | '.join(cells)} |\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=pathlib.Path, help="the table, in Markdown")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=KINDS, help="default: all")
    parser.add_argument("--case", type=int, help="read only this case, in this process")
    parser.add_argument("--keep", type=pathlib.Path, help="write the file of --case here")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of random files")
    arguments = parser.parse_args()
    kinds = arguments.kind or list(KINDS)
    if arguments.case is not None:
        if arguments.keep:
            arguments.keep.write_bytes(KINDS[kinds[0]].case(arguments.seed, arguments.case)[1])
        with tempfile.TemporaryDirectory() as directory:
            KINDS[kinds[0]].prepare()
            case = (kinds[0], arguments.case)
            reader = workers.Reader(KINDS, arguments.seed, workers.LIMITS, pathlib.Path(directory))
            print(reader.read(case))
        return 0
    table, failures, start = "", [], time.monotonic()
    for kind in kinds:
        number = len(cached(KINDS[kind].hostile)) + int(KINDS[kind].cases * arguments.scale)
        cases = ((kind, i) for i in range(number))
        results = []
        for result in workers.run(cases, KINDS, arguments.seed, arguments.processes):
            results.append(result)
            if result.failed:
                text = f"{kind} {result.case[1]} ({result.name}): {result.outcome}"
                failures.append(text)
                print(f"FAILED {text}", file=sys.stderr, flush=True)
        table += row(kind, results)
        print(row(kind, results), end="", flush=True)
        slowest = sorted(results, key=lambda r: -r.seconds)[:5]
        print(*(f"  {r.seconds:.1f} s: {r.name} {r.case[1]}" for r in slowest), sep="\n")
    print(f"{time.monotonic() - start:.0f} s")
    if arguments.output:
        note = "".join(f"\n- {failure}" for failure in failures)
        head = _HEAD.format(
            seconds=workers.LIMITS.seconds,
            memory=workers.LIMITS.memory // 2**30,
            seed=arguments.seed,
            note=f"\nFailures:\n{note}\n" if note else "",
        )
        arguments.output.write_text(head + table)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
