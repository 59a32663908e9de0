"""Names that are imported on first use, in a package made for the tests."""

import sys

import pytest

INIT = """
from nonlocal_jax._lazy import import_on_use

eager = 1
__all__ = ["blocks", "cube", "eager", "train"]
import_on_use(globals(), {"cube": "data"})
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Returns the package after it has replaced the text of one of its modules."""

    def write(module, text):
        (tmp_path / "lazy" / f"{module}.py").write_text(text)
        return __import__("lazy")

    (tmp_path / "lazy").mkdir()
    (tmp_path / "lazy" / "__init__.py").write_text(INIT)
    for module, text in {"blocks": "", "data": "def cube(): pass", "train": ""}.items():
        (tmp_path / "lazy" / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setitem(sys.modules, "optax", None)
    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazy"]:
        del sys.modules[name]


def test_names_are_listed_and_imported_on_use(package):
    lazy = package("train", "")
    assert "lazy.data" not in sys.modules
    assert {"blocks", "cube", "eager", "train"} <= set(dir(lazy))
    assert lazy.cube.__module__ == "lazy.data"
    assert lazy.train.__name__ == "lazy.train"
    assert lazy.__all__ == ["blocks", "cube", "eager", "train"]
    with pytest.raises(AttributeError, match="module 'lazy' has no attribute 'trian'"):
        _ = lazy.trian


@pytest.mark.parametrize("statement", ["import optax", "from optax import sgd", "import optax.x"])
def test_a_missing_package_makes_a_name_unavailable(statement, package):
    lazy = package("train", statement)
    message = (
        r"^lazy.train needs optax, which is not installed; "
        r"run pip install 'nonlocal_jax\[train\]'$"
    )
    assert not hasattr(lazy, "train")
    with pytest.raises(AttributeError, match=message) as raised:
        _ = lazy.train
    assert isinstance(raised.value.__cause__, ModuleNotFoundError)
    # Python drops the message of an AttributeError here.
    with pytest.raises(ModuleNotFoundError, match=message):
        from lazy import train  # noqa: F401
    names = {}
    exec("from lazy import *", names)
    assert {"blocks", "cube", "eager"} == {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("train", "import lazy.missing"),
        ("train", "import absl.missing"),
        ("train", "from sys import missing"),
        ("train", "raise ValueError"),
        ("blocks", "import optax"),  # no extra installs what the blocks import
    ],
)
def test_other_errors_are_raised_as_they_are(module, text, package):
    lazy = package(module, text)
    with pytest.raises((ImportError, ValueError)) as raised:
        getattr(lazy, module)
    assert raised.value.__cause__ is None
