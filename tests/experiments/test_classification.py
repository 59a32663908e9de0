"""The commands on a video experiment, with all layers over time and eight devices."""

import json

from nonlocal_jax import data
from tests.data import movies
from tests.helpers import read_metrics

CONFIG = (
    "--config=configs/video.py:nl_i3d_r50_5block_32f",
    "--config.model.stage_sizes=(1,1)",
    "--config.model.strides=(1,2)",
    "--config.model.width=4",
    "--config.model.block_at=('layer2.0',)",
    "--config.model.inflate_at=('layer1.0',)",
    "--config.model.num_classes=2",
    "--config.data.name=own",
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


def test_from_a_folder_of_videos_to_a_prediction(command, tmp_path):
    source, run = movies.video_folder(tmp_path / "source", {"train": 8, "val": 3}), tmp_path / "run"
    data_dir = f"--data-dir={tmp_path / 'data'}"
    status, out, err = command(
        "prepare", "video_folder", "--name=own", f"--source={source}", data_dir
    )
    assert status == 0, err
    assert out.endswith("examples: 8 train, 3 val\nclasses:  2 (jumping, running)\n")

    status, out, err = command("browse", *CONFIG, data_dir, f"--output={run}", "--number=2")
    assert status == 0, err
    # Two clips of eight frames, which are enlarged five times.
    assert data.read_image(run / "examples.png").shape[1] > 8 * 5 * 24

    status, out, err = command("train", *CONFIG, data_dir, f"--workdir={run}")
    assert status == 0, err
    assert "batch 8 on 8 x cpu" in out
    assert "batch norm statistics: batch 2 of 2" in err
    assert "evaluating 1clip: video 3 of 3" in err
    assert read_metrics(run)[-1].keys() == {
        "step",
        "val/top1_1clip",
        "val/mean_class_accuracy_1clip",
    }

    options = (*CONFIG, f"--checkpoint={run}", f"--output={tmp_path}")
    status, out, err = command("evaluate", *options, data_dir)
    assert status == 0, err
    assert "evaluating 10x3: video 3 of 3" in err
    assert out.startswith(f"evaluating step 2 of {run}\n| 10x3                |      % |\n")
    assert out.endswith(f"\nwrote {tmp_path / 'metrics.json'}\n")
    assert "over windows of all x 2 x 2 (frames x rows x columns); mean of the" in out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["protocol"]["name"] == "10x3"
    assert (metrics["experiment"], metrics["step"]) == ("nl_i3d_r50_5block_32f", 2)
    assert [row["name"] for row in metrics["classes"]] == ["jumping", "running"]
    assert 0 <= metrics["top1"] <= 1

    status, out, err = command("table", tmp_path)
    assert status == 0, err
    evaluated, logged = [
        [cell.strip() for cell in line.split("|")[2:-1]] for line in out.splitlines()[2:]
    ]
    assert evaluated == ["10x3", "top-1", f"{100 * metrics['top1']:.2f}", "-", "-", "1 (0)", "2"]
    assert logged[:2] == ["1clip", "top-1"]

    status, _, err = command("evaluate", *options, data_dir, "--multi_scale")
    assert status == 2
    assert "--multi_scale (multi_scale) is only for images" in err

    # The run contains the names of its classes.
    status, out, err = command("predict", *options, source / "val/running")
    assert status == 0, err
    for name in ("8", "10"):
        values = json.loads((tmp_path / f"{name}.json").read_text())
        assert {row["name"] for row in values["classes"]} == {"jumping", "running"}
        assert values["protocol"] == metrics["protocol"]
        assert (tmp_path / f"{name}_attention.png").exists()
