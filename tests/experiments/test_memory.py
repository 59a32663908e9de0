"""The command that measures memory."""

import json
import subprocess
import sys

import pytest

from tests.helpers import child_environment


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_of_attention_is_a_fraction_of_the_dense_implementation():
    def peak_mib(implementation):
        program = [sys.executable, "-m", "experiments.benchmark.memory", "operation"]
        arguments = ["--positions=6144", f"--implementation={implementation}"]
        done = subprocess.run(
            program + arguments,
            env=child_environment(JAX_PLATFORMS="cpu"),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["peak_mib"]

    dense = peak_mib("dense")
    assert dense > 144  # at least one 6144 x 6144 matrix of float32
    assert peak_mib("auto") < dense / 4


def test_the_forward_pass_of_a_network_is_measured(command):
    config = "--config=configs/segmentation.py:demo_fcn", "--config.model.width=8"
    status, stdout, stderr = command("benchmark.memory", "forward", *config, "--size=16x24")
    assert status == 0, stderr
    report = json.loads(stdout)
    assert (report["experiment"], report["size"]) == ("demo_fcn", [16, 24])
    assert report["peak_mib"] >= 0


@pytest.mark.usefixtures("libtpu")
def test_the_ring_needs_memory_only_for_the_positions_of_a_chip(command):
    status, stdout, stderr = command(
        "benchmark.memory",
        "operation",
        "--positions=100352",
        "--channels=256",
        "--dtype=bfloat16",
        "--topology=v5e:4x4",
        "--context=16",
        "--implementation=ring",
    )
    assert status == 0, stderr
    report = json.loads(stdout)
    assert (report["implementation"], report["context"]) == ("ring", 16)
    assert sum(report["chip_mib"].values()) < 32


FILE = "--config=configs/segmentation.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "cannot measure ''; use operation or forward"),
        (["forward"], "forward needs a network; add --config=configs/FILE.py:NAME"),
        (["forward", f"{FILE}:demo_fcn", "--size=64"], "--size=64 is not HEIGHTx"),
        (["operation", "--context=2"], "--context=2 needs --topology; add --topology=v5e:4x4"),
        (["operation", "--implementation=fast"], "is 'fast'; use one of auto, dense"),
        (
            ["operation", "--operation=context_pool", "--implementation=dense"],
            "--implementation='dense' is not supported for context_pool, which has one",
        ),
    ],
)
def test_mistakes_are_refused(command, arguments, message):
    status, stdout, stderr = command("benchmark.memory", *arguments)
    assert (status, stdout) == (2, "")
    assert message in stderr


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--context=8"], "--context=8 exceeds the 4 devices of v5e:2x2; use 4 or fewer"),
        (["--context=4"], "--context=4 does not divide --positions=9409; use --positions=9412"),
    ],
)
def test_a_context_that_does_not_fit_is_refused(command, arguments, message):
    status, _, stderr = command("benchmark.memory", "operation", "--topology=v5e:2x2", *arguments)
    assert (status, stderr) == (2, f"error: {message}\n")
