"""Every code block of the README runs, on small networks."""

import pathlib
import re
import shlex
import subprocess

import numpy as np
import pytest

import nonlocal_jax as nlj
from configs import segmentation
from tests.helpers import random_variables

ROOT = pathlib.Path(__file__).parents[2]
PUBLISHED = "nonlocal_r50-d8_512x1024_40k_cityscapes"
# Makes a run short.
SHORT = ["--config.steps=2", "--config.data.batch_size=8"]


def blocks(file, language):
    found = re.findall(
        r"^```(\w*)\n(.*?)^```$", (ROOT / file).read_text(), re.DOTALL | re.MULTILINE
    )
    return [block for name, block in found if name == language]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A directory with what the README assumes: the configs, a checkpoint and images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    model_config = segmentation.get_config("demo_nonlocal").model
    nlj.convert.export_torch("checkpoint.pth", random_variables(model_config), model_config)
    (tmp_path / "images").mkdir()
    nlj.data.write_png(tmp_path / "images" / "a.png", np.zeros((64, 64, 3), np.uint8))
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


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("file", ["README.md", "docs/devices.md"])
def test_python(file):
    code = "\n".join(blocks(file, "python"))
    assert code
    names = {}
    exec(compile(code.replace(PUBLISHED, "demo_nonlocal"), file, "exec"), names)
    if file == "README.md":
        assert names["logits"].shape == (2, 64, 64, 3)


def test_shell(workspace, command):
    done = []
    for line in "".join(blocks("README.md", "sh")).replace("\\\n", "").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "source":  # the tests run in an environment
            continue
        if program == "python":
            _, module, *arguments = arguments
            name = module.removeprefix("experiments.")
            status, _, errors = command(name, *arguments, *(SHORT if name == "train" else []))
            assert status == 0, errors
        elif program == "make":  # other tests run what the targets run
            subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
        else:
            assert program == "pip"
            assert "git+URL" in arguments[-1]
        done.append(program)
    assert {"make", "pip", "python"} == set(done)
    written = {str(p.relative_to(workspace)) for p in workspace.rglob("*.*")}
    assert {"runs/nl/metrics.json", "pictures/a_overlay.png", "nl.pth"} <= written
