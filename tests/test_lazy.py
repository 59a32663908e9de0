import subprocess
import sys

import pytest

from nonlocal_jax import data, lazy


def test_the_train_step_does_without_the_packages_of_data_and_files():
    absent = ["cv2", "grain", "matplotlib", "safetensors", "tensorflow_datasets", "tqdm"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}));"
        "import nonlocal_jax; from nonlocal_jax.train import create_state, make_train_step;"
        "nonlocal_jax.create_model"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_listed_before_they_are_imported():
    get, names = lazy.names("nonlocal_jax.data", {"no_such_module": ("something",)})
    assert {"something", "normalize"} <= set(names())
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        get("something")


def test_a_name_that_is_not_there_is_told_as_ever():
    with pytest.raises(AttributeError, match=r"'nonlocal_jax\.data' has no attribute 'normalise'"):
        _ = data.normalise
