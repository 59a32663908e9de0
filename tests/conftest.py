"""Settings of the whole suite: CPU, and float64 where a test asks for it."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture
def x64():
    """Double precision, where nothing hides behind rounding."""
    with jax.enable_x64(True):
        yield
