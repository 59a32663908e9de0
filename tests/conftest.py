"""Settings of the whole suite: eight CPU devices, strict types and shapes, float64 on request."""

import os
import socket
import subprocess
import sys
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from nonlocal_jax.errors import InputError
from nonlocal_jax.topology import use_tpu_compiler
from tests.helpers import child_environment

# Before the first use of a device.
jax.config.update("jax_num_cpu_devices", 8)
# Arrays of different types or ranks are not combined silently.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def _data_dir(tmp_path_factory):
    """The embedded data is built once for all workers, not in the user's own data directory."""
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NONLOCAL_JAX_DATA", str(directory / "data"))
        yield


@pytest.fixture
def x64():
    """Double precision, where nothing hides behind rounding."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unused_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture
def libtpu():
    """The TPU compiler, for this process and those that it starts."""
    with mock.patch.dict(os.environ):
        try:
            use_tpu_compiler()
        except InputError as error:
            pytest.skip(str(error))
        yield


@pytest.fixture(scope="session")
def on_devices():
    """Runs a program in a process with so many CPU devices, float64 on; gives what it prints."""

    def run(program: str, devices: int, *, optimize: bool = False) -> str:
        flags = f"--xla_force_host_platform_device_count={devices}"
        if not optimize:  # computes the same and compiles in half the time
            flags += " --xla_backend_optimization_level=0"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env=child_environment(XLA_FLAGS=flags, JAX_ENABLE_X64="1", JAX_PLATFORMS="cpu"),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
