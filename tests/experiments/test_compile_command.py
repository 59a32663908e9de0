import json

import pytest

pytestmark = pytest.mark.usefixtures("libtpu")

_CONFIG = "--config=configs/segmentation.py:demo_nonlocal"


def test_the_demo_compiles_for_a_pod(tmp_path, command):
    output = tmp_path / "reports" / "demo.json"
    status, stdout, stderr = command(
        "compile",
        _CONFIG,
        "--topology=v5e:2x4",
        "--batch_size=16",
        "--config.data.crop=32",
        "--config.data.crop=32",
        # The kernel of large feature maps, with two chips per image.
        "--config.model.block_implementation=flash",
        "--config.mesh.context=2",
        f"--text={tmp_path / 'texts' / 'demo.txt'}",
        f"--output={output}",
    )
    assert status == 0, stderr
    assert "HloModule" in (tmp_path / "texts" / "demo.txt").read_text()
    report = json.loads(output.read_text())
    assert json.loads(stdout) == report
    assert report["experiment"] == "demo_nonlocal"
    assert (report["chips"], report["batch_size"]) == (8, 16)
    # The parameters, their momentum (half as much again because tiles are padded), and two images
    # of the batch with their labels.
    least = 3 * 4 * report["parameters"] + 2 * 32 * 32 * 4
    assert least < report["bytes_per_chip"]["arguments"] < 7 * least
    assert report["bytes_per_chip"]["peak"] > report["bytes_per_chip"]["arguments"]
    assert report["flops_per_chip"] > 0
    assert report["bytes_accessed_per_chip"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9z:2x2"], "unknown TPU topology 'v9z:2x2'"),
        (["--topology=v5e:2x4", "--batch_size=12"], "8 or 16"),
    ],
)
def test_what_cannot_be_compiled_is_refused(tmp_path, command, arguments, message):
    output = tmp_path / "report.json"
    status, _, stderr = command("compile", _CONFIG, *arguments, f"--output={output}")
    assert status == 2
    assert stderr.startswith("error: ")
    assert message in stderr
    assert not output.exists()
