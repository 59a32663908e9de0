import os
import pathlib

import pytest

from nonlocal_jax import data


@pytest.fixture(scope="session")
def data_dir():
    """The directory of the prepared datasets, with ``digits_flag``."""
    data.load_source("digits_flag", "val")
    return pathlib.Path(os.environ["NONLOCAL_JAX_DATA"])
