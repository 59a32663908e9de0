"""--init and --checkpoint take every kind of checkpoint, --config another network is refused."""

import json

import cv2
import jax
import numpy as np
import pytest

from configs import segmentation
from nonlocal_jax import convert
from nonlocal_jax.convert import _torch_file as torch_file
from tests.helpers import random_variables

CHANGES = {"width": 4, "head_channels": 8, "auxiliary_channels": 4}


def model_config(experiment):
    return {**segmentation.get_config(experiment).model, **CHANGES}


def options(experiment):
    changes = (f"--config.model.{name}={value}" for name, value in CHANGES.items())
    return [f"--config=configs/segmentation.py:{experiment}", *changes]


def train_options(experiment):
    return [*options(experiment), "--config.data.batch_size=8", "--config.steps=1"]


MODEL = model_config("demo_nonlocal")


@pytest.fixture(scope="module")
def pth(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "nonlocal.pth"
    convert.export_torch(path, random_variables(MODEL), MODEL)
    return path


@pytest.fixture(scope="module")
def of_another_network(tmp_path_factory):
    config = model_config("demo_dnl") | {"num_classes": 4}
    path = tmp_path_factory.mktemp("checkpoint") / "dnl.pth"
    convert.export_torch(path, random_variables(config), config)
    return path


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    assert cv2.imwrite(str(path), np.full((64, 64, 3), 90, np.uint8))
    return path


def test_train_from_a_classifier_then_predict_from_the_run(command, tmp_path, image):
    config = model_config("demo_fcn")
    variables = random_variables(config)
    arrays = convert.to_torch(variables, config)
    backbone = {n.removeprefix("backbone."): a for n, a in arrays.items() if "backbone." in n}
    classifier = {"state_dict": backbone | {"fc.weight": np.zeros((10, 32), np.float32)}}
    torch_file.write(tmp_path / "resnet50_v1c.pth", classifier)
    run = tmp_path / "run"
    init = f"--init={tmp_path / 'resnet50_v1c.pth'}"
    status, out, err = command("train", *train_options("demo_fcn"), f"--workdir={run}", init)
    assert status == 0, err
    assert "done: step 1" in out
    start = convert.load(run / "checkpoints" / "0", config)
    jax.tree.map(
        np.testing.assert_array_equal, start["params"]["backbone"], variables["params"]["backbone"]
    )

    labels = []
    for i, checkpoint in enumerate((run, run / "checkpoints" / "1")):
        output = tmp_path / f"out{i}"
        arguments = (f"--checkpoint={checkpoint}", f"--output={output}", image)
        status, _, err = command("predict", *options("demo_fcn"), *arguments)
        assert status == 0, err
        labels.append((output / "image_labels.png").read_bytes())
    assert labels[0] == labels[1]

    arguments = (f"--checkpoint={tmp_path / 'resnet50_v1c.pth'}", f"--output={tmp_path}", image)
    status, _, err = command("predict", *options("demo_fcn"), *arguments)
    assert status == 2
    assert "has no heads, only a backbone; train with --init=" in err


def test_evaluate_a_pytorch_checkpoint(command, tmp_path, pth):
    arguments = (f"--checkpoint={pth}", f"--output={tmp_path}")
    status, _, err = command("evaluate", *options("demo_nonlocal"), *arguments)
    assert status == 0, err
    assert json.loads((tmp_path / "metrics.json").read_text())["checkpoint"] == str(pth)


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "convert"])
def test_a_pytorch_checkpoint_of_another_network_is_refused(
    command, tmp_path, image, of_another_network, name
):
    path, output = of_another_network, tmp_path / "out"
    arguments = {
        "train": [*train_options("demo_nonlocal"), f"--init={path}", f"--workdir={output}"],
        "evaluate": [*options("demo_nonlocal"), f"--checkpoint={path}", f"--output={output}"],
        "predict": [*options("demo_nonlocal"), f"--checkpoint={path}", f"--output={output}", image],
        "convert": [
            *options("demo_nonlocal"),
            f"--source={path}",
            f"--output={output}.safetensors",
        ],
    }
    status, _, err = command(name, *arguments[name])
    assert status == 2
    assert "Traceback" not in err
    for message in (
        f"error: {path} does not fit the model config\n",
        "block is 'disentangled_nonlocal' in the checkpoint, 'nonlocal' in the config\n",
        "num_classes is 4 in the checkpoint, 3 in the config\n",
        " missing:\n  decode_head.nl_block.",
        " not in the model:\n  decode_head.dnl_block.",
        "4 with a different shape:\n",
        "use the model config that it was made with",
    ):
        assert message in err
