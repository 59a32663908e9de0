import json
import subprocess
import sys

import pytest

from configs import segmentation
from nonlocal_jax.config import (
    boolean,
    check,
    choice,
    integer,
    mapping,
    number,
    optional,
    pair,
    partition,
    regex,
    sequence,
    text,
)
from nonlocal_jax.errors import InputError
from nonlocal_jax.tasks import TASKS

SEGMENTATION_LEAVES = TASKS["segmentation"].leaves


def message(config):
    with pytest.raises(InputError) as error:
        check(config, SEGMENTATION_LEAVES)
    return str(error.value)


def demo(**changes):
    config = segmentation.get_config("demo_nonlocal").to_dict()
    for name, value in changes.items():
        *sections, leaf = name.split("__")
        section = config
        for key in sections:
            section = section[key]
        section[leaf] = value
    return config


@pytest.mark.parametrize("name", segmentation.NAMES)
def test_every_experiment_passes(name):
    check(segmentation.get_config(name), SEGMENTATION_LEAVES)


def test_lists_of_a_json_file_pass():
    config = segmentation.get_config("demo_nonlocal")
    config.optimizer.lr_factors = (("bias", 2.0),)
    check(json.loads(config.to_json()), SEGMENTATION_LEAVES)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("data.scale_range", (2.0, 1.0), "two positive numbers in increasing order"),
        ("data.scale_range", (0.0, 1.0), "two positive numbers in increasing order"),
        ("data.mean", (1.0, 2.0), "three numbers"),
        ("data.std", (1.0, 0.0, 1.0), "three positive numbers"),
        ("data.flip", 3.0, "a number of at least 0 and at most 1"),
        ("data.category_max_ratio", 0.0, "a positive number of at most 1"),
        ("data.crop", (64.0, 64.0), "two positive integers"),
        ("data.crop", 64, "two positive integers"),
        ("data.batch_size", 0, "a positive integer"),
        ("data.photometric", 1, "True or False"),
        ("data.name", "", "a non-empty string"),
        ("evaluation.mode", "slid", "'whole' or 'slide'"),
        ("evaluation.stride", (32,), "two positive integers"),
        ("evaluation.ratios", (), "a non-empty tuple of positive numbers"),
        ("evaluation.ratios", (1.0, 0.0), "a non-empty tuple of positive numbers"),
        ("loss.auxiliary_weight", -0.4, "a number of at least 0"),
        ("seed", -1, "an integer of at least 0 and at most 4294967295"),
        ("seed", 2**32, "an integer of at least 0 and at most 4294967295"),
        ("steps", 0, "a positive integer of at most 2147483647"),
        ("schedule.warmup_steps", 2**31, "an integer of at least 0 and at most 2147483647"),
        ("train.log_every", 0, "a positive integer"),
        ("mesh.context", 0, "a positive integer"),
        (
            "mesh.rules",
            (("kernel", ("data", "data")),),
            "a tuple of pairs (a regular expression, a tuple of values that are None or 'data', "
            "'fsdp' or 'context', with each name at most once)",
        ),
        ("model", 3, "a mapping"),
        ("optimizer.learning_rate", -0.01, "a positive number"),
        ("optimizer.learning_rate", float("nan"), "a positive number"),
        ("optimizer.learning_rate", float("inf"), "a positive number"),
        ("optimizer.momentum", 1.0, "a number of at least 0 and less than 1"),
        ("optimizer.clip_global_norm", 0.0, "None or a positive number"),
        ("optimizer.no_decay", "bias", "a tuple of regular expressions"),
        ("optimizer.no_decay", ("(",), "a tuple of regular expressions"),
        (
            "optimizer.lr_factors",
            ("fc", 5.0),
            "a tuple of pairs (a regular expression, a positive number)",
        ),
        ("schedule.kind", "linear", "'poly', 'step' or 'cosine'"),
        ("schedule.warmup_factor", 2, "a number of at least 0 and at most 1"),
    ],
)
def test_a_wrong_value_is_refused(name, value, expected):
    config = demo(**{name.replace(".", "__"): value})
    assert message(config) == f"{name} is {value!r}; use {expected}"


def test_fields_with_a_default_may_be_missing():
    config = demo()
    del config["data"]["workers"], config["data"]["cache"], config["recipe"]
    check(config, SEGMENTATION_LEAVES)


def test_an_unknown_leaf_gives_the_nearest_and_a_missing_one_is_listed():
    config = demo(data__scale_rnge=(1.0, 1.0), steps=0)
    del config["data"]["scale_range"]
    assert message(config) == (
        "the config has 3 problems:\n"
        "  unknown field data.scale_rnge; did you mean data.scale_range?\n"
        "  steps is 0; use a positive integer of at most 2147483647\n"
        "  data.scale_range is missing; use two positive numbers in increasing order"
    )


def test_a_section_that_is_no_mapping_is_refused():
    assert "unknown field data" in message(demo(data=3))


def test_leaves_of_the_model_are_not_checked():
    check(demo(model__anything=3), SEGMENTATION_LEAVES)


@pytest.mark.parametrize(
    ("leaf", "accepted", "refused"),
    [
        (boolean(), [True, False], [0, None, "True"]),
        (integer(), [-3, 10**400], [1.0, True, "1"]),
        (integer(2, 4), [2, 4], [1, 5]),
        (number(), [-1, 0.5, 3e38], [True, float("inf"), -(10**400), 3.5e38, "1"]),
        (number(0, below=1), [0, 0.9], [1, -0.1]),
        (number(above=0, high=1), [1, 0.1], [0, 1.1]),
        (text(), ["a"], ["", 3, None]),
        (choice("a", "b"), ["a", "b"], ["c", 1, ["a"]]),
        (regex(), ["a|b", ""], ["(", 3, b"a"]),
        (sequence(integer()), [(), [1, 2]], [1, "ab", (1.5,), None]),
        (sequence(integer(), 2, ascending=True), [(1, 1), (1, 2)], [(2, 1), (1,), ("a", 1)]),
        (pair(text(), integer()), [("a", 1), ["a", 1]], [("a",), (1, "a"), "a1"]),
        (optional(integer()), [None, 1], ["None"]),
        (partition(), [(), [None, "fsdp", None]], [("data", None, "data"), ("x",), "data", None]),
        (mapping(), [{}, segmentation.get_config()], [None, ()]),
    ],
)
def test_what_leaves_accept(leaf, accepted, refused):
    assert [value for value in accepted if not leaf.accepts(value)] == []
    assert [value for value in refused if leaf.accepts(value)] == []


def test_import_without_jax():
    code = "import sys; import nonlocal_jax.config; print('jax' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    assert output.strip() == b"False"
