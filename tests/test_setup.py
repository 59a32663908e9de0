"""What `make setup` and the targets that follow it install."""

import importlib.util
import pathlib
import platform
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from nonlocal_jax.errors import InputError
from nonlocal_jax.topology import use_tpu_compiler

ROOT = pathlib.Path(__file__).parents[1]


def recipe(*arguments):
    """The commands of a target on a new machine."""
    command = ["make", "--dry-run", "--directory", ROOT, "VENV=none", f"PYTHON={sys.executable}"]
    return subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("target", ["setup", "demo", "demo-video"])
def test_users_do_not_download_the_tpu_compiler(target):
    commands = recipe(target)
    assert "libtpu" not in commands
    assert "MB to download" in commands
    assert "source none/bin/activate" in commands


@pytest.mark.parametrize(
    ("target", "system", "installed"),
    [
        ("libtpu", "Darwin arm64", True),
        ("test", "Linux x86_64", True),
        ("test", "Linux aarch64", False),
        ("test", "Darwin x86_64", False),
    ],
)
def test_the_tpu_compiler_is_installed_where_it_exists(target, system, installed):
    assert ("requirements-libtpu.txt" in recipe(target, f"SYSTEM={system}")) == installed


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ("Linux x86_64", "the TPU compiler is not installed; run `make libtpu` or `pip install"),
        (
            "Darwin arm64",
            "the TPU compiler, libtpu, does not exist for Darwin arm64; use an x86-64",
        ),
    ],
)
def test_without_the_tpu_compiler_a_message_says_how_to_get_it(
    system, message, tmp_path, monkeypatch
):
    name, machine = system.split()
    monkeypatch.setattr(platform, "system", lambda: name)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(InputError, match=message):
        use_tpu_compiler()


def test_the_check_of_the_lower_bounds_installs_what_make_setup_installs_and_gcs():
    extras = re.findall(r"-e '\.\[(\S+)\]'", recipe("setup") + recipe("check-lower-bounds"))
    assert len(extras) == 2
    assert f"{extras[0]},gcs" == extras[1]
    bounds = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = bounds["optional-dependencies"]
    for extra in (*extras[1].split(","), "train"):
        for requirement in map(Requirement, (*bounds["dependencies"], *groups[extra])):
            named = requirement.name == "nonlocal-jax" or {"==", ">="} & {
                specifier.operator for specifier in requirement.specifier
            }
            assert named, f"{requirement} has no lower bound"


def test_an_old_python_is_refused(tmp_path):
    old = tmp_path / "python3.10"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    command = ["make", "--directory", ROOT, f"VENV={tmp_path / 'venv'}", f"PYTHON={old}", "setup"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert f"{old} is older than 3.11; run: make setup PYTHON=python3.12" in result.stdout
    assert not (tmp_path / "venv").exists()
