"""Peak resident memory of the chunked form, forward and backward, each in a fresh process."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def peak_mib(implementation: str, positions: int) -> float:
    command = [sys.executable, "-m", "experiments.memory", "operation"]
    command += [f"--implementation={implementation}", f"--positions={positions}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output)["peak_mib"]


def test_chunked_memory_is_linear_and_a_fraction_of_dense():
    dense = peak_mib("dense", 9409)
    chunked = peak_mib("chunked", 9409)
    doubled = peak_mib("chunked", 18818)
    # The dense form keeps at least one 9409 x 9409 matrix of float32: 338 MiB.
    assert dense > 338
    assert chunked < dense / 4
    assert doubled < 2.5 * chunked
