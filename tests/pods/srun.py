"""Stands in for ``srun``: starts SLURM_NTASKS local processes with the variables of a job step.

As with --kill-on-bad-exit, the first process that fails ends the others. Each process writes its ID
to $TASKS/RANK.
"""

import itertools
import os
import pathlib
import subprocess
import sys
import time


def main(arguments):
    command = [*itertools.dropwhile(lambda argument: argument.startswith("-"), arguments)]
    tasks = int(os.environ["SLURM_NTASKS"])
    step = {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_TASKS": str(tasks)}
    processes = []
    for rank in range(tasks):
        ranks = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        processes.append(subprocess.Popen(command, env={**os.environ, **step, **ranks}))
        (pathlib.Path(os.environ["TASKS"]) / str(rank)).write_text(str(processes[-1].pid))
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):
            for process in processes:
                process.kill()
        time.sleep(0.05)
    # A process that a signal killed has a negative status here, and 128 + N in a shell.
    statuses = [code if code >= 0 else 128 - code for code in (p.returncode for p in processes)]
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
