import json
import subprocess
import sys

import pytest

from tests.helpers import child_environment


def _compile(*arguments, **environment):
    """In a process of its own: the command prepares its environment before it imports jax."""
    command = [sys.executable, "-m", "experiments.compile", *map(str, arguments)]
    return subprocess.run(
        command, env=child_environment(**environment), capture_output=True, text=True
    )


@pytest.mark.usefixtures("libtpu")
def test_the_demo_compiles_for_a_pod(tmp_path):
    output = tmp_path / "reports" / "demo.json"
    done = _compile(
        "--config=configs/segmentation.py:demo_nonlocal",
        "--topology=v5e:2x4",
        "--batch_size=16",
        # The kernel that large maps get, with two chips to an image.
        "--config.model.block_implementation=flash",
        "--config.mesh.context=2",
        f"--output={output}",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert json.loads(done.stdout) == report
    assert report["experiment"] == "demo_nonlocal"
    assert (report["chips"], report["batch_size"]) == (8, 16)
    # Parameters and their momentum, half as much again where tiles are filled up, and two images
    # of the batch with their labels.
    least = 3 * 4 * report["parameters"] + 2 * 64 * 64 * 4
    assert least < report["bytes_per_chip"]["arguments"] < 7 * least
    assert report["bytes_per_chip"]["peak"] > report["bytes_per_chip"]["arguments"]
    assert report["flops_per_chip"] > 0


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9z:2x2"], "no TPU topology 'v9z:2x2'"),
        (
            ["--topology=v5e:2x4", "--batch_size=12"],
            "12 does not divide over 8 devices: set data.batch_size to 8 or 16",
        ),
    ],
)
def test_what_cannot_be_compiled_is_refused(tmp_path, arguments, message):
    config = "--config=configs/segmentation.py:demo_nonlocal"
    done = _compile(config, *arguments, f"--output={tmp_path / 'report.json'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert not (tmp_path / "report.json").exists()
