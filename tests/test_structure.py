"""Imports point one way, and files stay short."""

import ast
import pathlib

import pytest

import nonlocal_jax

ROOT = pathlib.Path(nonlocal_jax.__file__).parent

# A module imports only from lines above its own, and from its own package.
LAYERS = (
    ("_lazy", "errors", "hlo"),
    ("config", "configs"),
    ("_sharding_checks", "distributed"),
    ("_files", "_interrupt", "_progress", "_signals", "sharding", "topology", "traffic"),
    ("compilation",),
    ("ops",),
    ("layers",),
    ("blocks",),
    ("backbones",),
    ("heads",),
    ("models",),
    ("convert",),
    ("data",),
    ("evaluation", "visualize"),
    ("tasks",),
    ("train",),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem in LEVELS)


def _imported(path):
    """Names of the parts of the library that a file imports, also inside of functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "nonlocal_jax" and rest.partition(".")[0] in LEVELS:
                yield rest.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in _imported(path):
        assert name == own or LEVELS[name] < LEVELS[own], f"{own} must not import {name}"


def test_every_part_of_the_library_has_a_level():
    parts = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert parts - {"__init__", "__pycache__"} == set(LEVELS)


def test_files_have_at_most_350_lines():
    long = {path.name for path in ROOT.rglob("*.py") if len(path.read_text().splitlines()) > 350}
    assert not long
