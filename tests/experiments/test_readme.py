"""Every code block of the README runs, on small networks."""

import pathlib
import re
import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest

import nonlocal_jax as nlj
from configs import segmentation
from tests.helpers import random_variables

ROOT = pathlib.Path(__file__).parents[2]
PUBLISHED = "nonlocal_r50-d8_512x512_80k_ade20k"
FILE = f"{PUBLISHED}_20200615_015801-5ae0aa33.pth"
NARROW = {"width": 4, "head_channels": 8, "auxiliary_channels": 4}
# Makes a run short, and a published network small.
SHORT = ["--config.steps=2", "--config.data.batch_size=8"]
SMALL = [
    *(f"--config.model.{name}={value}" for name, value in NARROW.items()),
    "--config.evaluation.base_size=(64,64)",
]


def blocks(file, language):
    found = re.findall(
        r"^```(\w*)\n(.*?)^```$", (ROOT / file).read_text(), re.DOTALL | re.MULTILINE
    )
    return [block for name, block in found if name == language]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """An empty directory with what the README assumes: a published checkpoint and photographs."""
    monkeypatch.chdir(tmp_path)
    model_config = {**segmentation.get_config(PUBLISHED).model, **NARROW}
    nlj.convert.export_torch(FILE, random_variables(model_config), model_config)
    (tmp_path / "photographs").mkdir()
    photograph = np.zeros((48, 64, 3), np.uint8)
    assert cv2.imwrite(str(tmp_path / "photographs" / "street.jpg"), photograph)
    return tmp_path


def test_the_settings_for_fine_tuning_are_valid(workspace, command):
    """They are refused only because there is no such dataset."""
    files = [text for text in blocks("docs/fine_tuning.md", "") if text.startswith("--config")]
    assert len(files) == 2
    for text in files:
        (workspace / "garden.flags").write_text(text)
        status, _, errors = command("train", "--flagfile=garden.flags", "--workdir=run")
        assert status == 2
        assert errors.startswith("error: unknown dataset 'garden'")


@pytest.mark.parametrize("file", ["README.md", "docs/devices.md"])
def test_python(file, workspace, monkeypatch):
    get_config = segmentation.get_config

    def narrow(name):
        config = get_config(name)
        config.model.update(NARROW)
        return config

    monkeypatch.setattr(nlj.configs.segmentation, "get_config", narrow)
    code = "\n".join(blocks(file, "python"))
    assert code
    names = {}
    exec(compile(code, file, "exec"), names)
    if file == "README.md":
        assert names["logits"].shape == (1, 48, 64, 150)
        assert names["labels"].shape == (48, 64)
        assert (workspace / "labels.png").exists()


def test_shell(workspace, command):
    done = []
    for line in "".join(blocks("README.md", "sh")).replace("\\\n", "").splitlines():
        assert "…" not in line
        program, *arguments = shlex.split(line, comments=True)
        if program == "python":
            _, module, *arguments = arguments
            name = module.removeprefix("experiments").removeprefix(".") or "__main__"
            short = SHORT if name == "train" else SMALL if PUBLISHED in line else []
            status, _, errors = command(name, *arguments, *short)
            assert status == 0, errors
        elif program == "make":  # other tests run what the targets run
            subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
        elif program == "pip":
            options = ["--quiet", "--dry-run", "--no-deps", "--no-build-isolation"]
            pip = [sys.executable, "-m", "pip", *arguments, *options]
            subprocess.run(pip, cwd=ROOT, check=True, capture_output=True)
        elif program == "curl":  # there may be no network
            assert arguments == ["-O", published_address(PUBLISHED)]
        else:  # the tests run in an environment
            assert arguments == [".venv/bin/activate"]
        done.append(program)
    assert {"curl", "make", "pip", "python", "source"} == {*done}
    written = {str(p.relative_to(workspace)) for p in workspace.rglob("*.*")}
    assert {
        "runs/nl/metrics.json",
        "pictures/street_overlay.png",
        "predicted/0_labels.png",
    } <= written
    assert {"nonlocal_ade20k.safetensors", "nl.pth", "browse/examples.png"} <= written


def published_address(name):
    """The address that the README describes."""
    (pattern,) = re.findall(
        r"`(https://download.openmmlab.com/[^`]*)`", (ROOT / "README.md").read_text()
    )
    method = {"nonlocal": "nonlocal_net", "dnl": "dnlnet", "gcnet": "gcnet"}[name.split("_")[0]]
    file = segmentation.get_config(name).published.checkpoint
    return pattern.replace("METHOD", method).replace("NAME", name).replace("FILE", file)
