"""Names of the experiments, golden text of every config, and the number of parameters.

``tests/golden/configs/video.txt`` contains all fields of the first experiment. For each of the
others, it contains the fields that differ from the first. ``UPDATE_GOLDEN=1`` rewrites it.
"""

import csv
import functools
import itertools
import json
import os
import pathlib
import re

import jax
import pytest
from absl import flags
from ml_collections import config_flags

import nonlocal_jax as nlj
from configs import video
from nonlocal_jax.errors import InputError
from nonlocal_jax.models import EXAMPLE_INPUTS

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
PAPER = [name for name in video.NAMES if re.fullmatch(r"(nl_)?(c2d|i3d)_\w+_(32|128)f", name)]


def read_parameters():
    with (GOLDEN / "video_parameters.csv").open(newline="") as file:
        return {row["name"]: int(row["parameters"]) for row in csv.DictReader(file)}


def flatten(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} = {json.dumps(value)}"


def golden_lines(name):
    lines = set(flatten(video.get_config(name).to_dict())) - {f"name = {json.dumps(name)}"}
    return lines if name == video.NAMES[0] else lines - golden_lines(video.NAMES[0])


@functools.cache
def golden():
    path = GOLDEN / "configs" / "video.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        sections = ("\n".join([f"[{n}]", *sorted(golden_lines(n))]) for n in video.NAMES)
        path.write_text("\n\n".join(sections) + "\n")
    sections = [section.splitlines() for section in path.read_text().split("\n\n")]
    return {name.strip("[]"): lines for name, *lines in sections}


@functools.cache
def count_parameters(model):
    module = nlj.create_model(json.loads(model))
    variables = jax.eval_shape(module.init, jax.random.key(0), EXAMPLE_INPUTS["video"])
    paths = jax.tree.leaves_with_path(variables["params"])
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf.size for p, leaf in paths}


def parameters(name):
    """Returns the sizes of the parameters. Experiments with the same network share the work."""
    return count_parameters(json.dumps(video.get_config(name).model.to_dict()))


def test_the_names():
    assert len(set(video.NAMES)) == len(video.NAMES) == 29 + 2 + 4 + 8 + 11 + 3 + 3 + 6
    assert len(PAPER) == 29
    assert not set(video.NAMES) & set(video.ALIASES)
    assert set(read_parameters()) == {n for n in video.NAMES if not n.startswith("demo_")}
    unpublished = {name for name in video.NAMES if not video.get_config(name).published}
    assert unpublished == {
        f"{block}_{network}_{depth}_5block_32f"
        for block, network, depth in itertools.product(
            ("dnl", "gc"), ("c2d", "i3d"), ("r50", "r101")
        )
    } | {f"demo_video_{name}" for name in ("none", "space", "time", "nonlocal", "dnl", "gc")}


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("nl_c2d_r50_embedded_gaussian_32f", "nl_c2d_r50_1block_32f"),
        ("nl_c2d_r50_res4_32f", "nl_c2d_r50_1block_32f"),
        ("nl_c2d_r50_spacetime_32f", "nl_c2d_r50_5block_32f"),
        ("nl_c2d_r101_spacetime_32f", "nl_c2d_r101_5block_32f"),
        ("i3d_r50_3x1x1_32f", "i3d_r50_baseline_32f"),
        ("i3d_r101_3x1x1_32f", "i3d_r101_baseline_32f"),
    ],
)
def test_an_alias_is_the_same_experiment(alias, name):
    assert video.get_config(alias).to_dict() == video.get_config(name).to_dict()
    assert video.ALIASES[alias] == name


@pytest.mark.parametrize("name", video.NAMES)
def test_golden_text(name):
    assert sorted(golden_lines(name)) == golden()[name]


def test_the_golden_text_has_no_other_experiments():
    assert set(golden()) == set(video.NAMES)


@pytest.mark.parametrize("name", read_parameters())
def test_parameters(name):
    sizes = parameters(name)
    assert sum(sizes.values()) == read_parameters()[name]
    # The optimizer refuses expressions that match no parameter.
    optimizer = video.get_config(name).optimizer
    patterns = [*optimizer.no_decay, *optimizer.frozen, *(p for p, _ in optimizer.lr_factors)]
    for pattern in patterns:
        assert any(re.search(pattern, path) for path in sizes), pattern


def selected(patterns, name):
    return {path for path in parameters(name) if any(re.search(p, path) for p in patterns)}


def test_the_parameters_without_decay_and_with_other_rates():
    name = "nl_i3d_r50_5block_32f"
    norms = {path for path in parameters(name) if re.search(r"(bn\d|_bn|norm)/\w+$", path)}
    assert len(norms) == 2 * (1 + 16 * 3 + 4 + 5)
    assert selected(video.get_config(name).optimizer.no_decay, name) == norms
    name = "i3d_r50_baseline_128f"
    assert selected(video.get_config(name).optimizer.frozen, name) == {
        path for path in parameters(name) if path.endswith(("scale", "bias"))
    } - {"classifier/bias"}
    for name in ("mmaction2_tsm_nl_embedded_gaussian_r50_8f", "mit_tsm_nl_dense_r50_8f"):
        optimizer = video.get_config(name).optimizer
        assert selected(optimizer.no_decay, name) == {
            path for path in parameters(name) if not path.endswith("kernel")
        }
        factors = {factor: selected([pattern], name) for pattern, factor in optimizer.lr_factors}
        assert factors[5.0] == {"classifier/kernel"}
        assert factors[10.0] == {"classifier/bias"}
        assert len(factors[2.0]) == 3 * 5


def test_no_option_is_named_after_a_source():
    options = {key for name in video.NAMES for key in video.get_config(name).model}
    assert not [key for key in options if re.search("caffe|mmaction|mit_|slow|tsm", key)]


def test_the_recipe_of_a_row_of_the_paper():
    config = video.get_config("nl_i3d_r101_5block_32f")
    places = ("layer2.1", "layer2.3", "layer3.6", "layer3.13", "layer3.20")
    assert config.model.block_at == places
    assert config.model.block_sub_sample == "before"
    assert (config.model.norm, config.model.block_norm) == ("batch_norm", "batch_norm")
    assert config.model.group_frames is None
    assert (config.steps, config.schedule.boundaries) == (400_000, (150_000, 300_000))
    assert (config.data.batch_size, config.optimizer.learning_rate) == (64, 0.01)
    assert config.optimizer.nesterov
    assert config.train.precise_batch_norm == 200
    assert config.published.to_dict() == {
        "top1": 76.0,
        "top5": 92.1,
        "protocol": "10 clips of whole frames with short side 256; fully convolutional; "
        "mean of probabilities",
    }
    long = video.get_config("nl_i3d_r101_5block_128f")
    assert long.model.block_at == places
    assert (long.model.norm, long.model.block_norm) == ("frozen_batch_norm", "none")
    assert (long.model.group_frames, long.model.group_at) == (4, places[:2])
    assert (long.data.frames, long.data.interval, long.data.batch_size) == (128, 1, 16)
    assert long.train.precise_batch_norm == 0


@pytest.mark.parametrize(
    ("variant", "places"),
    [
        ("1block", ["layer3.4"]),
        ("res2", ["layer1.1"]),
        ("res3", ["layer2.2"]),
        ("res5", ["layer4.1"]),
        ("5block", ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"]),
        ("10block", [f"layer2.{i}" for i in range(4)] + [f"layer3.{i}" for i in range(6)]),
    ],
)
def test_the_places_of_the_blocks(variant, places):
    assert list(video.get_config(f"nl_c2d_r50_{variant}_32f").model.block_at) == places


def test_the_released_and_the_published_accuracy_of_a_row():
    published = video.get_config("c2d_r50_baseline_32f").published
    assert (published.top1, published.top5) == (71.8, 89.7)
    assert (published.released_top1, published.released_top5) == (72.0, 90.0)
    assert published.checkpoint == "c2d_baseline_32x2_IN_pretrain_400k.pkl"


def test_epochs_are_converted_to_steps():
    config = video.get_config("mmaction2_tsm_r50_8f")
    assert config.data.batch_size == 128
    assert (config.steps, config.schedule.warmup_steps) == (93_750, 9_375)
    assert config.schedule.boundaries == (46_875, 84_375)
    config = video.get_config("pyslowfast_i3d_r50_8f")
    assert (config.steps, config.schedule.warmup_steps) == (735_000, 127_500)
    assert config.schedule.kind == "cosine"


def test_charades():
    config = video.get_config("charades_nl_i3d_r101_128f")
    assert (config.data.name, config.model.num_classes) == ("charades", 157)
    assert config.loss.kind == "sigmoid"
    assert config.published.map == 37.5
    kinetics = video.get_config("nl_i3d_r101_5block_128f").model
    kinetics.num_classes = 157
    assert config.model.to_dict() == kinetics.to_dict()


def test_another_block_changes_nothing_else():
    nonlocal_ = video.get_config("nl_i3d_r50_5block_32f").to_dict()
    other = video.get_config("gc_i3d_r50_5block_32f").to_dict()
    for config in (nonlocal_, other):
        config["model"] = {k: v for k, v in config["model"].items() if not k.startswith("block")}
    different = {key for key in other if other[key] != nonlocal_[key]}
    assert different == {"name", "recipe", "published"}


def from_command_line(name, *arguments):
    argv = ["train", f"--config={video.__file__}:{name}", *arguments]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return config.value


def test_fields_that_are_empty_can_be_set_from_the_command_line():
    config = from_command_line(
        "nl_c2d_r50_1block_32f",
        "--config.model.group_frames=4",
        "--config.model.group_at=('layer3.4',)",
        "--config.model.norm_group_size=16",
        "--config.model.block_sub_sample=after",
        "--config.data.crop_scales=(1,0.8)",
        "--config.evaluation.window=(0,7,7)",
        "--config.train.remat=blocks",
        "--config.mesh.rules=(('kernel$',(None,'fsdp')),)",
        "--config.train.ema=0.999",
    )
    assert (config.model.group_frames, config.model.group_at) == (4, ("layer3.4",))
    assert (config.model.norm_group_size, config.model.block_sub_sample) == (16, "after")
    assert (config.data.crop_scales, config.evaluation.window) == ((1, 0.8), (0, 7, 7))
    assert (config.train.remat, config.train.ema) == ("blocks", 0.999)
    assert config.mesh.rules == (("kernel$", (None, "fsdp")),)


def test_unknown_name_gives_the_nearest():
    with pytest.raises(InputError, match="did you mean 'nl_i3d_r50_5block_32f'"):
        video.get_config("nl_i3d_r50_5blocks_32f")
    with pytest.raises(InputError, match="'slowonly'; use one of mmaction2_slowonly_r50_8f, mmac"):
        video.get_config("slowonly")


def test_the_configs_of_the_command_line_are_those_of_the_library():
    assert video.get_config is nlj.configs.video.get_config
    assert video.NAMES is nlj.configs.video.NAMES
    assert video.ALIASES is nlj.configs.video.ALIASES
