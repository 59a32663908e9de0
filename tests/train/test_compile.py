"""Steps compiled for TPUs that this machine does not have, and what is reported of them."""

import re

import jax
import pytest

from nonlocal_jax.configs import segmentation
from nonlocal_jax.errors import InputError
from nonlocal_jax.topology import CHIPS, chip_of
from nonlocal_jax.train import compile as compile_module
from nonlocal_jax.train.compile import compile_evaluation, compile_train_step

pytestmark = pytest.mark.usefixtures("libtpu")


@pytest.fixture
def config():
    config = segmentation.get_config("demo_nonlocal")
    config.data.update(batch_size=8, crop=(32, 32))
    config.evaluation.base_size = (64, 32)
    return config


def test_a_step_that_does_not_fit_is_a_result(config, monkeypatch):
    def compile(_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20G of 15.75G hbm.\nAllocations")

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile)
    report = compile_train_step(config, "v5e:2x2")
    assert report["fits"] is False
    assert report["error"] == "RESOURCE_EXHAUSTED: Used 20G of 15.75G hbm."
    assert "fewer images per chip" in report["advice"]
    assert "--config.train.remat=full" in report["advice"]
    assert "--config.mesh.context=2" in report["advice"]
    sizes = report["bytes_per_chip"]
    assert sizes["optimizer"] == sizes["parameters"] + 4  # the momentum, and the number of steps
    assert sizes["parameters"] == 4 * report["parameters"]


@pytest.mark.parametrize(
    ("context", "fsdp", "step", "expected"),
    [
        (2, 2, "train", ["context=4,", "fsdp=4,"]),
        (4, 2, "train", []),
        (8, 1, "evaluate", []),
        (4, 1, "evaluate", ["context=8,"]),
    ],
)
def test_the_advice_fits_the_devices(config, context, fsdp, step, expected):
    config.mesh.update(context=context, fsdp=fsdp)
    config.model.dtype = "bfloat16"
    advice = compile_module._advice(config, step, 8, devices=8)
    assert re.findall(r"--config\.mesh\.(\S+)", advice) == expected
    assert (advice == "use chips with more memory") == (step == "evaluate" and not expected)


def test_the_moving_average_is_memory_and_traffic(config, monkeypatch):
    """Both are counted before the compilation, so any program takes the place of the compiled."""
    other = jax.jit(lambda x: x + 1).lower(1.0).compile()
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda _: other)
    plain = compile_train_step(config, "v5e:2x2")
    config.train.ema = 0.999
    report = compile_train_step(config, "v5e:2x2")
    sizes = report["bytes_per_chip"]
    assert "ema" not in plain["bytes_per_chip"]
    assert sizes["ema"] == sizes["parameters"] + sizes["batch_statistics"]
    necessary = [r["traffic_per_chip"]["optimizer"]["necessary"] for r in (report, plain)]
    assert necessary[0] == necessary[1] + 2 * sizes["ema"]


def test_an_evaluation_with_two_chips_per_image(config):
    config.mesh.context = 2
    report = compile_evaluation(config, "v5e:2x2")
    assert report["batch"] == {"image": "uint8[2,32,64,3]"}
    assert report["fits"]
    assert report["collectives_per_chip"]  # the rows at the border, and the keys and values
    assert report["roofline"]["seconds"] == max(report["roofline"]["seconds_of"].values())
    assert report["throughput"].keys() == {"images_per_second", "images_per_second_and_host"}


def test_the_roofline():
    chip = CHIPS["v5e"]
    sent = {"all-reduce": {"calls": 1, "bytes": 4e9}, "send": {"calls": 1, "bytes": 1e6}}
    roofline = compile_module._roofline(chip, 197e9, 819e6, sent)
    assert roofline == {
        "seconds": pytest.approx(0.02),
        "limited_by": "interconnect",
        "seconds_of": pytest.approx(
            {"compute": 1e-3, "memory": 1e-3, "interconnect": 0.02, "network": 3.2e-4}
        ),
    }


def test_the_numbers_of_a_chip():
    assert chip_of("2*v5e:16x16") is chip_of("v5e:2x4") is CHIPS["v5e"]
    with pytest.raises(
        InputError, match="numbers of the chips of v2:2x2 are not known; use one of v4"
    ):
        chip_of("v2:2x2")
