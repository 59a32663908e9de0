"""Memory forward and backward: resident, in a fresh process each, and as compiled for a TPU."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def memory(operation: str, positions: int, *flags: str) -> dict:
    command = [sys.executable, "-m", "experiments.benchmark.memory", "operation"]
    command += [f"--operation={operation}", f"--positions={positions}", *flags]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_mib(operation: str, positions: int, implementation: str = "auto") -> float:
    return memory(operation, positions, f"--implementation={implementation}")["peak_mib"]


@pytest.mark.parametrize("operation", ["softmax_attention", "disentangled"])
def test_attention_is_linear_in_memory_and_a_fraction_of_dense(operation):
    dense = peak_mib(operation, 9409, "dense")
    once, twice = peak_mib(operation, 9409), peak_mib(operation, 18818)
    # "dense" materializes at least one 9409 x 9409 matrix of float32: 338 MiB.
    assert dense > 338
    assert once < dense / 4
    assert twice < 2.5 * once


@pytest.mark.parametrize("operation", ["dot_product", "concatenation", "context_pool"])
def test_the_others_are_linear_in_memory(operation):
    once, twice = peak_mib(operation, 50_176), peak_mib(operation, 100_352)
    # An argument takes 25 MiB, a matrix would take 38 GiB.
    assert twice < 2.5 * once + 50 < 500


def chip_mib(operation: str, positions: int, *flags: str) -> float:
    """Memory that the TPU compiler allocates on a chip: C = 256, bfloat16, forward and backward."""
    report = memory(operation, positions, "--channels=256", "--dtype=bfloat16", *flags)
    return sum(report["chip_mib"].values())


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("operation", ["softmax_attention", "disentangled"])
def test_attention_is_linear_in_the_memory_of_a_tpu(operation):
    for positions in (25_088, 100_352):
        # 12 MiB and 49 MiB. The attention matrix would take 1.2 GiB and 19 GiB in this type.
        an_argument = positions * 256 * 2 / 2**20
        assert chip_mib(operation, positions, "--topology=v5e:2x2") < 25 * an_argument


@pytest.mark.usefixtures("libtpu")
def test_the_ring_only_needs_memory_for_the_positions_of_a_chip():
    flags = "--topology=v5e:4x4", "--context=16", "--implementation=ring"
    assert chip_mib("softmax_attention", 100_352, *flags) < 32
