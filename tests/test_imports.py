"""What can be imported with the base dependencies, and with each extra."""

import importlib.metadata
import json
import pathlib
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nonlocal_jax as nlj
from tests.helpers import child_environment

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared(*extras):
    """Names of the packages that extras list, with those of the extras that they include."""
    for extra in extras:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
            if requirement.name == "nonlocal-jax":
                yield from declared(*requirement.extras)
            else:
                yield canonicalize_name(requirement.name)


def closure(names, without=()):
    """The packages and what they require."""
    found, queue = set(), list(names)
    while queue:
        name = canonicalize_name(queue.pop())
        if name in found or name in without:
            continue
        found.add(name)
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of another platform
            continue
        for requirement in map(Requirement, requirements):
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                queue.append(requirement.name)
    return found


def run(code, packages=()):
    """Runs code that can import only the base dependencies and ``packages``.

    What Flax and ml_collections import for themselves counts as absent.
    """
    base = [Requirement(text).name for text in PROJECT["dependencies"]]
    present = closure(base, without=set(declared("all")) - {"ml-dtypes"}) | closure(packages)
    absent = [
        name
        for name, owners in importlib.metadata.packages_distributions().items()
        if name != "nonlocal_jax" and present.isdisjoint(map(canonicalize_name, owners))
    ]
    start = f"""
import flax.linen, json, ml_collections, sys
sys.modules.update(dict.fromkeys({absent}))
import nonlocal_jax as nlj
"""
    process = subprocess.run(
        [sys.executable, "-c", start + code],
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_package_imports_nothing_before_its_first_use():
    code = "import nonlocal_jax, sys; print(*{'jax', 'numpy', 'ml_collections'} & {*sys.modules})"
    process = subprocess.run([sys.executable, "-c", code], env=child_environment(), stdout=-1)
    assert process.stdout.split() == []


def test_base_dependencies():
    code = """
import jax, jax.numpy as jnp
from nonlocal_jax.configs import segmentation

config = segmentation.get_config("demo_nonlocal")
images = nlj.data.normalize(jnp.ones((1, 16, 16, 3)), config.data.mean, config.data.std)
jax.eval_shape(nlj.create_model(config.model).init, jax.random.key(0), images)
for block in (
    nlj.blocks.NonLocalBlock, nlj.blocks.DisentangledNonLocalBlock, nlj.blocks.GlobalContextBlock
):
    jax.eval_shape(block().init, jax.random.key(0), images)
jax.eval_shape(nlj.ops.softmax_attention, *[jnp.ones((1, 8, 4))] * 3)
print(json.dumps(nlj.__all__))
"""
    missing = {"compilation", "evaluation", "train"}
    assert set(json.loads(run(code))) == set(nlj.__all__) - missing


def test_a_missing_extra_is_named():
    code = """
import contextlib, importlib, io, re

def check(path, missing, extra):
    path = f"nonlocal_jax.{path}"
    parent, _, name = path.rpartition(".")
    package = importlib.import_module(parent)
    advice = rf"run pip install 'nonlocal_jax\\[{extra}\\]'"
    message = f"{re.escape(path)} needs {missing}, which is not installed; {advice}"
    assert not hasattr(package, name)
    try:
        getattr(package, name)
    except AttributeError as error:
        assert re.fullmatch(message, str(error)), error
        assert isinstance(error.__cause__, ModuleNotFoundError)
    try:
        exec(f"from {parent} import {name}")
    except ModuleNotFoundError as error:
        assert re.fullmatch(message, str(error)), error
    with contextlib.redirect_stdout(io.StringIO()):
        help(package)
    exec(f"from {parent} import *", names := {})
    assert len(names) > 1 and name not in names

check("convert.load", r"\\w+", "convert")
check("convert.load_block", r"\\w+", "convert")
check("data.read_image", "cv2", "data")
check("data.get_dataset", "etils", "data")
check("data.train_batches", r"\\w+", "data")
check("evaluation", r"\\w+", "data")
check("train", "optax", "train")
check("visualize.color_overlay", "cv2", "visualize")
check("visualize.curves_png", "matplotlib", "visualize")
"""
    run(code)


def test_the_train_step_needs_optax_only():
    code = """
import jax, numpy as np
from nonlocal_jax.configs import segmentation
from nonlocal_jax.sharding import Shardings, make_mesh
from nonlocal_jax.train import create_experiment, create_state, make_train_step
from nonlocal_jax.train.state import abstract_state

config = segmentation.get_config("demo_nonlocal")
config.data.update(batch_size=2, crop=(8, 8))
experiment = create_experiment(config)
shardings = Shardings(make_mesh(jax.devices()[:1]))
batch = {"image": np.ones((2, 8, 8, 3), np.uint8), "label": np.ones((2, 8, 8), np.uint8)}
state = abstract_state(experiment, shardings)
jax.eval_shape(make_train_step(experiment, shardings), state, batch)
"""
    run(code, ["optax"])


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ("convert", ["convert"]),
        ("data", ["data", "evaluation"]),
        ("train", ["convert", "evaluation", "train"]),
        ("visualize", ["visualize"]),
    ],
)
def test_an_extra_installs_all_that_its_parts_import(extra, parts):
    code = f"print(json.dumps({{part: getattr(nlj, part).__all__ for part in {parts}}}))"
    usable = json.loads(run(code, declared(extra)))
    assert usable == {part: getattr(nlj, part).__all__ for part in parts}


def test_the_extra_all():
    parts = "convert", "data", "train", "video", "visualize"
    assert set(declared("all")) == {name for part in parts for name in declared(part)}


@pytest.mark.parametrize("package", [nlj, nlj.convert, nlj.data, nlj.train, nlj.visualize])
def test_public_names_are_listed_and_exist(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        getattr(package, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'nonlocal_jax\.data' has no attribute 'normalise'"):
        _ = nlj.data.normalise
