"""--init and --checkpoint take every kind of checkpoint, --config another network is refused."""

import json

import cv2
import jax
import numpy as np
import pytest

from configs import segmentation
from nonlocal_jax import convert, data
from nonlocal_jax.convert import _torch_file as torch_file
from nonlocal_jax.errors import InputError
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


def test_fine_tune_then_predict_and_share_without_the_data(command, tmp_path, image):
    """A network with 5 classes becomes one with 3, whose classes every later file knows."""
    init, run, shared = (tmp_path / name for name in ("five.pth", "run", "shared.safetensors"))
    five = model_config("demo_fcn") | {"num_classes": 5}
    old = random_variables(five)
    convert.export_torch(init, old, five)
    arguments = [*train_options("demo_fcn"), f"--workdir={run}"]
    for flag in ("--reinit-head", "--new-blocks"):
        status, _, err = command("train", *arguments, flag)
        assert status == 2
        assert f"add --init=PATH (init), or leave out {flag}" in err
        assert not run.exists()
    status, _, err = command("train", *arguments, f"--init={init}")
    assert status == 2
    assert "num_classes is 5 in the checkpoint, 3 in the config" in err
    assert "(--reinit-head of experiments.train and" in err
    assert not list(run.glob("checkpoints/*"))

    # The updates are too small to change a parameter.
    arguments += [f"--init={init}", "--reinit-head", "--config.optimizer.learning_rate=1e-30"]
    status, out, err = command("train", *arguments)
    assert status == 0, err
    assert "done: step 1" in out
    start = convert.load(run / "checkpoints" / "1", model_config("demo_fcn"))
    jax.tree.map(
        np.testing.assert_array_equal, start["params"]["backbone"], old["params"]["backbone"]
    )
    init.unlink()
    status, out, err = command("train", *arguments)
    assert status == 0, err
    assert "from step 1 of 1" in out

    unknown = [*options("demo_fcn"), "--config.data.name=own"]
    given = [*unknown, f"--source={run}", f"--output={shared}"]
    assert command("convert", *given)[0] == 0
    assert convert.read_dataset(shared) == data.get_dataset("digits_flag").to_json()
    predict = [*unknown, f"--output={tmp_path / 'out'}", image]
    status, _, err = command("predict", *predict, f"--checkpoint={shared}")
    assert status == 0, err
    # The legend shows names.
    assert cv2.imread(str(tmp_path / "out" / "image_overlay.png")).shape[0] > 64
    status, _, err = command(
        "predict", *predict, f"--checkpoint={shared}", "--config.model.num_classes=19"
    )
    assert status == 2
    assert "num_classes is 3 in the checkpoint, 19 in the config" in err

    assert command("convert", *given, "--reinit-head")[0] == 0
    assert convert.read_dataset(shared) is None
    status, _, err = command("predict", *predict, f"--checkpoint={shared}")
    assert status == 2
    assert f"{shared} does not contain the names of its classes" in err


def test_a_backbone_alone_does_not_predict(command, tmp_path, image):
    arrays = convert.to_torch(random_variables(MODEL), MODEL)
    backbone = {n.removeprefix("backbone."): a for n, a in arrays.items() if "backbone." in n}
    path = tmp_path / "resnet50_v1c.pth"
    torch_file.write(path, {"state_dict": backbone | {"fc.weight": np.zeros((10, 32), np.float32)}})
    arguments = (f"--checkpoint={path}", f"--output={tmp_path}", image)
    status, _, err = command("predict", *options("demo_nonlocal"), *arguments)
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


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "convert"])
def test_weights_that_are_not_finite_need_a_flag(command, tmp_path, image, monkeypatch, name):
    path, output = tmp_path / "diverged.pth", tmp_path / "out"
    variables = random_variables(MODEL)
    variables["params"]["decode_head"]["conv_seg"]["bias"][0] = np.nan
    convert.export_torch(path, variables, MODEL)
    arguments = {
        "train": [*train_options("demo_nonlocal"), f"--init={path}", f"--workdir={output}"],
        "evaluate": [*options("demo_nonlocal"), f"--checkpoint={path}", f"--output={output}"],
        "predict": [*options("demo_nonlocal"), f"--checkpoint={path}", f"--output={output}", image],
        "convert": [
            *options("demo_nonlocal"),
            f"--source={path}",
            f"--output={output}.safetensors",
        ],
    }[name]
    status, _, err = command(name, *arguments)
    assert status == 2
    assert f"{path} has 1 arrays with values that are NaN" in err
    assert "decode_head.conv_seg.bias: 1 of 3" in err
    assert "(--allow-non-finite)" in err
    if name == "convert":
        assert command(name, *arguments, "--allow-non-finite")[0] == 0
        return

    def stop(*_, allow_non_finite, **__):
        raise InputError(f"loaded with {allow_non_finite}")

    monkeypatch.setattr(convert, "load", stop)
    assert "loaded with True" in command(name, *arguments, "--allow-non-finite")[2]
