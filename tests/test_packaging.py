"""The contents and the dependencies of the wheel."""

import ast
import email
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement

from nonlocal_jax.configs import segmentation, video
from tests.test_imports import declared

ROOT = pathlib.Path(__file__).parents[1]
LIBRARY = ROOT / "nonlocal_jax"
# The packages whose names differ from those that Python imports.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "array_record": "array-record",
    "cv2": "opencv-python-headless",
    "ml_collections": "ml-collections",
    "ml_dtypes": "ml-dtypes",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "tensorboardX": "tensorboardx",
    "tensorflow_datasets": "tensorflow-datasets",
}
BASE = {"flax", "jax", "ml-collections", "numpy"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the working tree, built with the setuptools of this environment."""
    source = tmp_path_factory.mktemp("source")
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "golden")
    for name in ("configs", "experiments", "nonlocal_jax", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, "wheel"],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (path,) = source.glob("wheel/*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert files == {
        str(path.relative_to(ROOT))
        for pattern in ("*.py", "*.csv", "py.typed")
        for path in LIBRARY.rglob(pattern)
    }
    for name in ("segmentation", "video"):
        assert f"nonlocal_jax/configs/{name}_published.csv" in files


def test_the_configs_of_the_wheel_are_usable(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = """
import nonlocal_jax.configs, sys
from nonlocal_jax.configs import segmentation, video
assert nonlocal_jax.configs.__file__.startswith(sys.argv[1])
print(*(m.get_config(name).name for m in (segmentation, video) for name in m.NAMES))
print("jax" in sys.modules)
"""
    names = subprocess.check_output(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, text=True
    ).split()
    assert names == [*segmentation.NAMES, *video.NAMES, "False"]


def test_the_dependencies(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    base = {requirement.name for requirement in requirements if not requirement.marker}
    assert base == {"flax", "jax", "ml_collections", "numpy"}
    assert set(metadata.get_all("Provides-Extra")) == {
        *("all", "convert", "data", "train", "video", "visualize"),
        *("cuda13", "demo", "dev", "gcs", "parity", "tensorboard", "tpu"),
    }


@pytest.mark.parametrize("part", ["convert", "data", "train", "visualize"])
def test_an_extra_lists_what_its_part_imports(part):
    optional = {"data": ["demo", "video"], "train": ["tensorboard"]}
    extras = [part, *optional.get(part, [])]
    used = {name for path in (LIBRARY / part).rglob("*.py") for name in _imported(path)}
    assert used <= BASE | set(declared(*extras))


def test_all_other_parts_but_three_import_the_base_dependencies_only():
    used = {}
    for path in LIBRARY.rglob("*.py"):
        part = path.relative_to(LIBRARY).parts[0]
        if part not in {"convert", "data", "train", "visualize"}:
            used.setdefault(part, set()).update(_imported(path) - BASE)
    assert {part: names for part, names in used.items() if names} == {
        "_files.py": {"etils"},
        "_progress.py": {"tqdm"},
        "evaluation": {"grain"},
    }


def _imported(path):
    """The packages that a file imports, also inside of functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    names -= {*sys.stdlib_module_names, "nonlocal_jax"}
    return {DISTRIBUTIONS.get(name, name) for name in names}
