"""The comparison of two configs."""

import json

import pytest
from ml_collections import ConfigDict

from nonlocal_jax.config import differences

CONFIG = {"seed": 0, "model": {"stage_sizes": (1, (2, 3)), "block": "nonlocal"}, "train": {"x": 1}}


@pytest.mark.parametrize("convert", [dict, ConfigDict, lambda c: json.loads(json.dumps(c))])
def test_a_copy_is_equal(convert):
    assert differences(convert(CONFIG), ConfigDict(CONFIG)) == []
    assert differences(CONFIG, convert(CONFIG)) == []


def test_every_difference_is_one_line_sorted_by_name():
    other = {"seed": 1, "model": {"stage_sizes": [1, [2, 4]], "width": 4}, "train": {"x": 1}}
    assert differences(CONFIG, other) == [
        "model.block is 'nonlocal' in the checkpoint, missing in the config",
        "model.stage_sizes is (1, (2, 3)) in the checkpoint, (1, (2, 4)) in the config",
        "model.width is missing in the checkpoint, 4 in the config",
        "seed is 0 in the checkpoint, 1 in the config",
    ]


@pytest.mark.parametrize("ignored", [["train"], ["train.x"]])
def test_ignored_leaves_and_sections_may_differ(ignored):
    assert differences(CONFIG, CONFIG | {"train": {"x": 2}}, ignored) == []


def test_an_option_that_is_none_is_not_missing():
    assert differences({"a": None}, {}) == ["a is None in the checkpoint, missing in the config"]
