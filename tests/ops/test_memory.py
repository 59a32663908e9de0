"""Peak resident memory, forward and backward, each measured in a fresh process."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def peak_mib(operation: str, positions: int, implementation: str = "auto") -> float:
    command = [sys.executable, "-m", "experiments.memory", "operation"]
    command += [f"--operation={operation}", f"--implementation={implementation}"]
    command += [f"--positions={positions}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output)["peak_mib"]


@pytest.mark.parametrize("operation", ["softmax_attention", "disentangled"])
def test_attention_is_linear_in_memory_and_a_fraction_of_the_dense_form(operation):
    dense = peak_mib(operation, 9409, "dense")
    once, twice = peak_mib(operation, 9409), peak_mib(operation, 18818)
    # The dense form keeps at least one 9409 x 9409 matrix of float32: 338 MiB.
    assert dense > 338
    assert once < dense / 4
    assert twice < 2.5 * once


@pytest.mark.parametrize("operation", ["dot_product", "concatenation"])
def test_rearranged_sums_are_linear_in_memory(operation):
    once, twice = peak_mib(operation, 50_176), peak_mib(operation, 100_352)
    # An argument takes 25 MiB, a matrix would take 38 GiB.
    assert twice < 2.5 * once + 50 < 500
