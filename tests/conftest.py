"""Settings of the whole suite: eight CPU devices, strict types and shapes, float64 on request."""

import os
import signal
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# No compiled programs in the user's own cache. Some tests have a cache of their own.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")
# Most of the time of the tests is compilation. Without optimization it takes half of it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Of the rest, most was the code generation for fused operations, and splitting programs for threads
# that the tests do not have. XLA versions without the first option ignore it.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
    " --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from nonlocal_jax.errors import InputError
from nonlocal_jax.topology import use_tpu_compiler
from tests.helpers import free_port

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
    return free_port()


@pytest.fixture(autouse=True)
def same_compilation_cache():
    """The TPU compiler turns the cache off for its process."""
    yield
    if not jax.config.jax_enable_compilation_cache:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


@pytest.fixture
def libtpu():
    """The TPU compiler, for this process and those that it starts."""
    with mock.patch.dict(os.environ):
        try:
            use_tpu_compiler()
        except InputError as error:
            pytest.skip(str(error))
        yield
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # libtpu ignores it, also in new processes
