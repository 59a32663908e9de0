"""A network, an experiment and data that are small enough for steps of milliseconds."""

import pathlib
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as compilation_cache_module

from configs import segmentation
from tests.helpers import child_environment


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compiles programs once that several tests, or their processes, run."""
    directory = str(tmp_path_factory.mktemp("compilation_cache"))
    options = {
        "jax_compilation_cache_dir": directory,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache_module.reset_cache()  # JAX reads the options at the first compilation
    yield {name.upper(): str(value) for name, value in options.items()}
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def config():
    """The demo with feature maps of 4x4 pixels. Dropout is the only randomness."""
    config = segmentation.get_config("demo_nonlocal")
    config.steps = 6
    config.model.update(width=4, head_channels=8, auxiliary_channels=8, dropout=0.1)
    config.data.update(batch_size=4, base_size=(16, 16), crop=(16, 16))
    config.train.update(log_every=1, checkpoint_every=2, evaluate_every=3)
    return config


@pytest.fixture(scope="session")
def source():
    """Twelve images of four squares. The red channel determines the class."""
    rng = np.random.default_rng(0)
    examples = []
    for i in range(12):
        label = np.kron(rng.integers(0, 3, (2, 2), np.uint8), np.ones((8, 8), np.uint8))
        image = rng.integers(0, 256, (16, 16, 3), np.uint8)
        image[..., 0] = 100 * label
        examples.append({"image": image, "label": label, "id": i})
    return examples


@pytest.fixture
def start(config, source, tmp_path, compilation_cache):
    """Starts the run, with the config as it is then, in a process with one device.

    For one of two processes, give the address and the index.
    """

    def start(*process, imports=()):
        arguments = tmp_path / "arguments"
        arguments.write_bytes(pickle.dumps((config, source, imports)))
        script = pathlib.Path(__file__).with_name("slow_run.py")
        return subprocess.Popen(
            [sys.executable, script, arguments, tmp_path / "run", *process],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(**compilation_cache),
        )

    return start
