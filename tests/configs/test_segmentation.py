"""Names of the experiments, golden text of every config, and the number of parameters.

A changed recipe shows as a changed golden text. ``UPDATE_GOLDEN=1 make test`` rewrites the texts.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections import config_flags

import nonlocal_jax as nlj
from configs import segmentation
from nonlocal_jax.errors import InputError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "configs"
CLASSES = {
    "cityscapes": 19,
    "ade20k": 150,
    "voc12aug": 21,
    "pascal-context-59": 59,
    "pascal-context-60": 60,
}

# Parameters with 19 classes, counted in mmsegmentation.
PARAMETERS = {
    ("nonlocal", 50): 50_023_814,
    ("nonlocal", 101): 69_015_942,
    ("dnl", 50): 50_024_327,
    ("dnl", 101): 50_024_327 + 18_992_128,
    ("gcnet", 50): 49_630_215,
    ("gcnet", 101): 49_630_215 + 18_992_128,
}
ROWS = [name for name in segmentation.NAMES if not name.startswith("demo_")]


def test_there_are_44_published_rows_two_others_and_the_demo():
    assert len(ROWS) == len(set(ROWS)) == 44 + 2
    unpublished = {n for n in ROWS if not segmentation.get_config(n).published}
    assert unpublished == {f"dnl_r101-d8_480x480_40k_pascal-context-{n}" for n in (59, 60)}
    assert {n for n in segmentation.NAMES if n not in ROWS} == {
        "demo_nonlocal",
        "demo_dnl",
        "demo_gc",
        "demo_fcn",
    }


@pytest.mark.parametrize("name", segmentation.NAMES)
def test_golden_text(name):
    text = json.dumps(segmentation.get_config(name).to_dict(), indent=1, sort_keys=True) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_network_and_loss_resize_alike():
    config = segmentation.get_config("demo_gc")
    config.model.align_corners = True
    assert config.loss.to_dict()["align_corners"] is True
    assert json.loads(config.to_json())["loss"]["align_corners"] is True


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_the_parameters_of_the_reference(name):
    config = segmentation.get_config(name)
    model = nlj.create_model(config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 33, 33, 3)))
    head, depth, *_, dataset = name.split("_")
    # The classifier of the decode head reads 512 channels, that of the auxiliary head 256.
    classifiers = (CLASSES[dataset] - 19) * (512 + 1 + 256 + 1)
    expected = PARAMETERS[head, 50 if "r50" in depth else 101] + classifiers
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == expected


def test_the_recipe_of_a_row():
    config = segmentation.get_config("dnl_r101-d8_769x769_80k_cityscapes")
    assert config.steps == 80_000
    assert config.model.block == "disentangled_nonlocal"
    assert config.model.stage_sizes == (3, 4, 23, 3)
    assert config.model.align_corners
    assert config.loss.align_corners
    assert config.data.crop == (769, 769)
    assert config.data.base_size == config.evaluation.base_size == (2049, 1025)
    assert config.data.batch_size == 8
    assert config.evaluation.mode == "slide"
    assert (config.evaluation.crop, config.evaluation.stride) == ((769, 769), (513, 513))
    assert config.task == "segmentation"
    assert config.schedule.kind == "poly"
    assert config.published.to_dict() == {
        "miou": 79.41,
        "miou_ms_flip": 80.68,
        "checkpoint": "dnl_r101-d8_769x769_80k_cityscapes_20200821_051111-95ff84ab.pth",
    }


@pytest.mark.parametrize("classes", [59, 60])
def test_the_recipe_of_pascal_context(classes):
    """mmsegmentation's fcn_r101-d8_4xb4-40k_pascal-context-59-480x480.py, with DNL's head."""
    config = segmentation.get_config(f"dnl_r101-d8_480x480_40k_pascal-context-{classes}")
    other = segmentation.get_config("dnl_r101-d8_512x1024_40k_cityscapes")
    assert (config.data.name, config.model.num_classes) == (f"pascal_context{classes}", classes)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (0.004, 1e-4)
    assert (config.steps, config.data.batch_size) == (40_000, 16)
    assert (config.data.crop, config.data.base_size) == ((480, 480), (520, 520))
    assert config.evaluation.mode == "slide"
    assert config.evaluation.base_size == (520, 520)
    assert (config.evaluation.crop, config.evaluation.stride) == ((480, 480), (320, 320))
    assert config.published.to_dict() == {}
    assert "no config of DNL on PASCAL Context" in config.recipe
    # Network and loss do not depend on the dataset.
    other.model.num_classes = classes
    assert config.model.to_dict() == other.model.to_dict()
    assert config.loss.to_dict() == other.loss.to_dict()


def from_command_line(*arguments):
    argv = ["train", f"--config={segmentation.__file__}:demo_nonlocal", *arguments]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return config.value


def test_every_kind_of_leaf_can_be_set_from_the_command_line():
    config = from_command_line(
        "--config.steps=7",
        "--config.optimizer.learning_rate=1",
        "--config.optimizer.nesterov",
        "--config.optimizer.clip_global_norm=35",
        "--config.optimizer.no_decay=('bias',)",
        "--config.optimizer.frozen=^backbone/",
        "--config.optimizer.lr_factors=(('fc/bias', 10.0), ('fc', 5))",
        "--config.schedule.kind=step",
        "--config.schedule.boundaries=(3,5)",
        "--config.model.block_at=('layer1.0',)",
        "--config.model.align_corners=true",
    )
    assert config.steps == 7
    assert config.optimizer.to_dict() == {
        "learning_rate": 1.0,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "clip_global_norm": 35.0,
        "no_decay": ("bias",),
        "lr_factors": (("fc/bias", 10.0), ("fc", 5)),
        "frozen": ("^backbone/",),
    }
    assert (config.schedule.kind, config.schedule.boundaries) == ("step", (3, 5))
    assert config.model.block_at == ("layer1.0",)
    assert config.loss.align_corners is True


@pytest.mark.parametrize("argument", ["--config.steps=1.5", "--config.schedule.power=x"])
def test_a_wrong_type_on_the_command_line_is_refused(argument):
    with pytest.raises(flags.IllegalFlagValueError):
        from_command_line(argument)


@pytest.mark.parametrize(
    ("text", "value"), [("before", "before"), ("after", "after"), ("True", True), ("false", False)]
)
def test_every_way_to_pool_can_be_set(text, value):
    config = from_command_line(f"--config.model.block_sub_sample={text}")
    assert config.model.block_sub_sample == value
    assert type(config.model.block_sub_sample) is type(value)
    assert json.loads(config.to_json())["model"]["block_sub_sample"] == value
    assert nlj.create_model(config.model) is not None
    config.model.block_sub_sample = "before"
    assert segmentation.get_config("demo_nonlocal").model.block_sub_sample is False


def test_slide_evaluation_has_sensible_defaults():
    config = from_command_line("--config.evaluation.mode=slide")
    assert (config.evaluation.crop, config.evaluation.stride) == ((64, 64), (43, 43))
    config = from_command_line("--config.evaluation.crop=(32,48)", "--config.evaluation.stride=9,8")
    assert (config.evaluation.crop, config.evaluation.stride) == ((32, 48), (9, 8))


def test_unknown_name_gives_the_nearest():
    with pytest.raises(InputError, match="did you mean 'gcnet_r50-d8_512x512_20k_voc12aug'"):
        segmentation.get_config("gcnet_r50-d8_512x512_20k_voc12")


@pytest.mark.parametrize("package", ["configs", "nonlocal_jax.configs"])
def test_configs_do_not_import_jax(package):
    code = f"import sys; from {package} import segmentation, video; "
    code += "print(len(segmentation.NAMES), 'jax' in sys.modules, 'flax' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert output.split() == ["50", "False", "False"]


def test_the_configs_of_the_command_line_are_those_of_the_library():
    assert segmentation.get_config is nlj.configs.segmentation.get_config
    assert segmentation.NAMES is nlj.configs.segmentation.NAMES
