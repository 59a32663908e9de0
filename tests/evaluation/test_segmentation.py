"""Evaluation on a source of examples."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from configs import segmentation
from nonlocal_jax.data import Dataset, get_dataset
from nonlocal_jax.errors import InputError
from nonlocal_jax.evaluation import _programs, evaluator, report


class GrayLevels:
    """A model that classifies black, gray and white pixels as 0, 1 and 2."""

    stride = 1

    def apply(self, variables, images, *, upsample):
        gray = images[..., :1] * 58.395 + 123.675
        return -jnp.abs(gray - jnp.array([0.0, 128.0, 255.0]).reshape(1, 1, 1, 3))


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(_programs, "create_model", lambda config: GrayLevels())
    config = segmentation.get_config("demo_fcn")
    config.evaluation.base_size = (8, 6)
    return config


def example(labels, shown=None):
    labels = np.array(labels, np.uint8)
    gray = np.array([0, 128, 255, 255], np.uint8)[labels if shown is None else shown]
    return {"image": np.repeat(gray[..., None], 3, -1), "label": labels, "id": "street"}


def test_one_confusion_matrix_counts_images_of_several_sizes(config):
    source = [
        example(np.full((6, 8), 1)),
        example(np.full((12, 16), 255), shown=np.full((12, 16), 2)),
        example(np.full((3, 4), 0), shown=np.full((3, 4), 1)),
    ]
    summary = evaluator(config, source)({})
    # 48 pixels are right and 12 are wrong. A mean over images would be different.
    assert summary["overall_accuracy"] == pytest.approx(48 / 60)
    np.testing.assert_allclose(summary["iou"], [0, 48 / 60, np.nan])
    assert summary["miou"] == pytest.approx(0.4)

    table, values = report(summary)
    assert table.splitlines()[2].split() == ["|", "background", "|", "0.00", "|", "0.00", "|"]
    assert json.loads(json.dumps(values, allow_nan=False)) == {
        "dataset": "digits_flag",
        "images": 3,
        "protocol": {
            "base_size": [8, 6],
            "ratios": [1.0],
            "flip": False,
            "crop": None,
            "stride": None,
            "align_corners": False,
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
        },
        "miou": 0.4,
        "mean_accuracy": 0.5,
        "overall_accuracy": 0.8,
        "classes": [
            {"name": "background", "iou": 0.0, "accuracy": 0.0},
            {"name": "digit (disc)", "iou": 0.8, "accuracy": 1.0},
            {"name": "digit (ring)", "iou": None, "accuracy": None},
        ],
    }


def test_classes_are_named_by_the_source_or_the_config_or_numbered(config):
    class Source(list):
        name = "own/val"

    source = Source([example(np.full((6, 8), 1))])

    def reported():
        table, values = report(evaluator(config, source)({}))
        names = [row["name"] for row in values["classes"]]
        assert [line.split()[1] for line in table.splitlines()[2:5]] == [
            n.split()[0] for n in names
        ]
        return values["dataset"], names

    known = get_dataset("digits_flag")
    assert reported() == ("digits_flag", list(known.classes))
    for config.data.name in ("own", "cityscapes"):
        assert reported() == ("own/val", ["0", "1", "2"])
    source.dataset = Dataset("own", ("a", "b", "c"), known.palette)
    assert reported() == ("own", ["a", "b", "c"])
    source.dataset = get_dataset("cityscapes")
    message = "predicts 3 classes, but cityscapes has 19; use --config.model.num_classes=19"
    with pytest.raises(InputError, match=message):
        evaluator(config, source)


def test_the_number_of_examples_read_ahead_is_bounded(config):
    read = []

    class Source:
        def __len__(self):
            return 40

        def __getitem__(self, index):
            read.append(index)
            return example(np.full((6, 8), 3 if index == 0 else 1))

    with pytest.raises(InputError):
        evaluator(config, Source())({})
    assert len(read) < 40


def test_an_invalid_example_is_named(config):
    wrong_class = example(np.full((6, 8), 3))
    with pytest.raises(InputError, match=r"labels of example 'street' contain 3; use .* 0 to 2"):
        evaluator(config, [wrong_class])({})
    wrong_size = {**example(np.full((6, 8), 1)), "label": np.zeros((8, 6), np.uint8)}
    with pytest.raises(InputError, match=r"\(8, 6\)"):
        evaluator(config, [wrong_size])({})


def test_an_empty_source_is_refused(config):
    with pytest.raises(InputError, match="no examples"):
        evaluator(config, [])({})


def test_a_generator_is_no_source(config):
    with pytest.raises(InputError, match=r"source is of type generator, .*a list of examples"):
        evaluator(config, (example(np.ones((6, 8))) for _ in range(2)))


def test_errors_of_the_source_are_raised_unchanged(config):
    class Source:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            raise InputError(f"example {index} is damaged")

    with pytest.raises(InputError, match=r"example \d is damaged"):
        evaluator(config, Source())({})
