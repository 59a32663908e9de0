"""The commands on a video experiment, with all layers over time and eight devices."""

import json

import numpy as np
import pytest

from nonlocal_jax import data
from nonlocal_jax.data import Dataset
from nonlocal_jax.data.videos import FrameArray
from tests.helpers import read_metrics

CONFIG = (
    "--config=configs/video.py:nl_i3d_r50_5block_32f",
    "--config.model.stage_sizes=(1,2)",
    "--config.model.strides=(1,2)",
    "--config.model.width=4",
    "--config.model.block_at=('layer2.0',)",
    "--config.model.inflate_at=('layer1.0',)",
    "--config.model.num_classes=3",
    "--config.data.frames=8",
    "--config.data.batch_size=8",
    "--config.data.crop=24",
    "--config.data.short_side=(28,32)",
    "--config.evaluation.short_side=28",
    "--config.evaluation.crop=28",
    "--config.evaluation.window=(0,2,2)",
    "--config.train.precise_batch_norm=2",
    "--config.steps=2",
)


class Source(list):
    name = "tiny"
    dataset = Dataset("tiny", ("dark", "gray", "bright"), ((0, 0, 0),) * 3)


@pytest.fixture
def source(monkeypatch):
    rng = np.random.default_rng(0)
    source = Source(
        {
            "video": FrameArray(rng.integers(0, 90, (20, 32, 40, 3), np.uint8) + np.uint8(80 * k)),
            "label": k,
            "id": f"{k}",
        }
        for k in range(3)
    )
    monkeypatch.setattr(data, "load_source", lambda *_: source)


@pytest.mark.usefixtures("source")
def test_train_and_evaluate(command, tmp_path):
    run = tmp_path / "run"
    status, out, err = command("train", *CONFIG, f"--workdir={run}")
    assert status == 0, err
    assert "batch 8 on 8 x cpu" in out
    assert "batch norm statistics: 2/2" in err
    assert "evaluating 1clip: 3/3" in err
    assert read_metrics(run)[-1].keys() == {
        "step",
        "val/top1_1clip",
        "val/mean_class_accuracy_1clip",
    }

    options = (*CONFIG, f"--checkpoint={run}", f"--output={tmp_path}")
    status, out, err = command("evaluate", *options)
    assert status == 0, err
    assert "evaluating 10x3: 3/3" in err
    assert out.startswith("| 10x3                |      % |\n")
    assert "features averaged over windows of allx2x2; mean of the probabilities" in out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["protocol"]["name"] == "10x3"
    assert metrics["experiment"] == "nl_i3d_r50_5block_32f"
    assert [row["name"] for row in metrics["classes"]] == ["dark", "gray", "bright"]
    assert 0 <= metrics["top1"] <= 1

    status, _, err = command("evaluate", *options, "--multi_scale")
    assert status == 2
    assert "leave out --multi_scale" in err
