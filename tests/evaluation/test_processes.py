"""Evaluation in two processes."""

import pathlib
import subprocess
import sys

from tests.helpers import child_environment

_PROGRAM = pathlib.Path(__file__).with_name("evaluate_in_processes.py")


def test_two_processes_evaluate_their_shares_or_a_sharded_state_together(unused_port):
    processes = [
        subprocess.Popen(
            [sys.executable, str(_PROGRAM), f"localhost:{unused_port}", str(index)],
            env=child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    ends = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
