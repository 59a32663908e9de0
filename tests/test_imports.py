"""Names of the packages, which are imported on first use."""

import subprocess
import sys

import pytest

import nonlocal_jax as nlj


def test_the_train_step_needs_no_package_for_data_files_or_pictures():
    absent = ["cv2", "grain", "matplotlib", "orbax", "safetensors", "tensorflow_datasets", "tqdm"]
    code = (
        "import flax.linen, sys;"  # flax itself imports orbax
        f"sys.modules.update(dict.fromkeys({absent}));"
        "import nonlocal_jax; from nonlocal_jax.train import create_state, make_train_step;"
        "nonlocal_jax.create_model"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", [nlj, nlj.data, nlj.train])
def test_public_names_are_listed_and_exist(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        getattr(package, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'nonlocal_jax\.data' has no attribute 'normalise'"):
        _ = nlj.data.normalise
