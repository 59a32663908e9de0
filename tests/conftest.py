"""Settings of the whole suite: CPU, and float64 where a test asks for it."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def _data_dir(tmp_path_factory):
    """Embedded data is built once, and not in the user's own data directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NONLOCAL_JAX_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def x64():
    """Double precision, where nothing hides behind rounding."""
    with jax.enable_x64(True):
        yield
