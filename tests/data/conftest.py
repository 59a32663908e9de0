import pytest

from nonlocal_jax import data


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A directory with ``digits_flag``."""
    directory = tmp_path_factory.mktemp("data")
    data.load_source("digits_flag", "val", directory)
    return directory
