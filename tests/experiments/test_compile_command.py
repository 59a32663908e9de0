import json

import pytest

pytestmark = pytest.mark.usefixtures("libtpu")

_CONFIG = "--config=configs/segmentation.py:demo_nonlocal"


def test_the_demo_compiles_for_a_pod(tmp_path, command, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    output = tmp_path / "reports" / "demo.json"
    status, stdout, stderr = command(
        "compile",
        _CONFIG,
        "--topology=2*v5e:2x2",
        "--batch_size=16",
        # libtpu 0.0.50 cannot scatter narrower kernels over the chips of a slice.
        "--config.model.width=64",
        "--config.data.crop=32",
        "--config.data.crop=32",
        # The kernel of large feature maps, with two chips per image.
        "--config.model.block_implementation=flash",
        "--config.mesh.context=2",
        f"--text={tmp_path / 'texts' / 'demo.txt'}",
        f"--output={output}",
    )
    assert status == 0, stderr
    assert not [*cache.iterdir()]  # JAX could not read such entries
    assert "HloModule" in (tmp_path / "texts" / "demo.txt").read_text()
    report = json.loads(output.read_text())
    assert json.loads(stdout) == report
    assert report["experiment"] == "demo_nonlocal"
    assert (report["chips"], report["slices"], report["batch_size"]) == (8, 2, 16)
    # Only the sums over the batch leave a slice, of which each chip sends at least a quarter. The
    # chips of an image are in the same slice.
    sent = report["collectives_per_chip"]["send"]["bytes"]
    assert 4 * report["parameters"] / 4 < sent < 4 * report["parameters"]
    # The parameters, their momentum, and two images of the batch with their labels.
    least = 2 * 4 * report["parameters"] + 2 * 32 * 32 * 4
    assert least < report["bytes_per_chip"]["arguments"] < 2 * least  # tiles are padded
    assert report["bytes_per_chip"]["peak"] > report["bytes_per_chip"]["arguments"]
    assert report["fits"]
    assert report["bytes_per_chip"]["peak"] < report["bytes_per_chip"]["memory"] == 16 * 2**30
    assert report["flops_per_chip"] > 0
    moved = sum(kind["bytes"] for kind in report["traffic_per_chip"].values())
    assert 0 < moved == report["hbm_bytes_per_chip"] < report["bytes_accessed_per_chip"]
    assert report["throughput"]["images_per_second"] == 16 / report["roofline"]["seconds"]


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
