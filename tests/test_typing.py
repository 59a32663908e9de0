"""Type checkers see every public name, with its types."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import nonlocal_jax as nlj
from tests.experiments.test_readme import blocks

ROOT = pathlib.Path(__file__).parents[1]
# What must be accepted, in addition to the README and the public names.
RIGHT = [
    'nlj.blocks.NonLocalBlock(mode="gaussian", dtype=jax.numpy.bfloat16)',
    'nlj.blocks.DisentangledNonLocalBlock(dtype="bfloat16")',
    "nlj.blocks.GlobalContextBlock(dtype=jax.numpy.dtype(jax.numpy.float32))",
    "nlj.blocks.NonLocalBlock().init(jax.random.key(0), jax.numpy.ones((1, 8, 8, 16)))",
]
# What must be refused, and a part of the message.
WRONG = {
    'nlj.blocks.NonLocalBlock(mode="gausian")': 'Argument "mode" to "NonLocalBlock"',
    'nlj.blocks.GlobalContextBlock(ratio="half")': 'Argument "ratio" to "GlobalContextBlock"',
    "nlj.blocks.NonLocalBlok()": 'has no attribute "NonLocalBlok"',
    "nlj.create_model()": 'Missing positional argument "config"',
    'nlj.convert.load("a.pth")': 'Missing positional argument "model_config"',
    "nlj.configs.segmentation.get_config(3)": 'Argument 1 to "get_config"',
    'nlj.data.read_image("a.png").astpye': 'has no attribute "astpye"',
    "nlj.train.trian": 'has no attribute "trian"',
    "nlj.modles": 'has no attribute "modles"',
}


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    """What mypy says about the README, all public names, and ``WRONG``, by file and line."""
    directory = tmp_path_factory.mktemp("typing")
    names = [f"nlj.{name}" for name in nlj.__all__]
    for package in list(vars(nlj).values()):
        if hasattr(package, "__path__"):
            part = package.__name__.removeprefix("nonlocal_jax.")
            names += [f"nlj.{part}.{name}" for name in package.__all__]
    header = ["import jax", "import nonlocal_jax as nlj"]
    sources = {
        "readme.py": "\n".join(blocks("README.md", "python")),
        "names.py": "\n".join(header + RIGHT + names),
        "wrong.py": "\n".join(header + list(WRONG)),
    }
    for name, source in sources.items():
        (directory / name).write_text(source + "\n")
    options = ["--follow-imports=silent", "--check-untyped-defs", "--hide-error-context"]
    process = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--config-file=", "--cache-dir=.cache", *sources],
        cwd=directory,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    found = re.findall(r"^(\S+?):(\d+): error: (.*)$", process.stdout, re.MULTILINE)
    assert found, process.stdout + process.stderr
    return {(file, int(line)): message for file, line, message in found}


def test_the_readme_and_every_public_name_are_accepted(messages):
    assert not {place: text for place, text in messages.items() if place[0] != "wrong.py"}


@pytest.mark.parametrize(("line", "code"), list(enumerate(WRONG, 3)))
def test_mistakes_are_refused(line, code, messages):
    assert WRONG[code] in messages.get(("wrong.py", line), "no error")
