"""The demo with tiny networks, little data and short runs."""

import dataclasses
import json
import signal
import sys
import types

import cv2
import numpy as np
import pytest

from configs import segmentation, video
from nonlocal_jax import tasks, train
from nonlocal_jax.data.datasets import _records
from tests import helpers

# Names of the networks of the video demo.
VIDEO = [name for name in video.NAMES if name.startswith("demo_video_")]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    get_segmentation, get_video = segmentation.get_config, video.get_config

    def shrink_segmentation(name):
        config = get_segmentation(name)
        config.steps = 2
        config.data.batch_size = 2
        config.model.update(width=4, head_channels=8, auxiliary_channels=4)
        return config

    def shrink_video(name):
        config = get_video(name)
        config.model.width = 4
        return config

    monkeypatch.setattr(segmentation, "get_config", shrink_segmentation)
    monkeypatch.setattr(video, "get_config", shrink_video)
    monkeypatch.setattr(_records.RecordSource, "__len__", lambda _: 16)
    monkeypatch.setattr(train, "train", helpers.train)


def random_network(config, workdir, source, evaluate):
    """Replaces the training of a network."""
    variables = helpers.random_variables(config.model, config.seed)
    workdir.mkdir()
    record = json.dumps({"step": config.steps, "val/top1_1clip": 0.5})
    (workdir / "metrics.jsonl").write_text(f"{record}\n")
    return train.Result(types.SimpleNamespace(variables=variables), {}, None)


def test_the_demo_writes_metrics_and_pictures_of_both_networks(command, tmp_path):
    status, out, err = command("demo", f"--output={tmp_path}")
    assert status == 0, err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert sorted(metrics) == ["demo_fcn", "demo_nonlocal"]
    for network in metrics.values():
        assert network["miou"] == pytest.approx(np.mean(list(network["iou"].values())))
    cells = " | ".join(f"{100 * metrics[n]['miou']:.1f}" for n in ("demo_fcn", "demo_nonlocal"))
    assert f"| **mIoU** | {cells} |" in out
    # What follows is said first.
    assert out.startswith("Two networks are trained")
    assert out.index("meant to\nfail") < out.index("Training 1 of 2: demo_fcn, no block\n")
    assert "Training 2 of 2: demo_nonlocal, NL\n" in out
    picture = cv2.imread(str(tmp_path / "pictures.png"))
    assert picture.shape[1] > picture.shape[0] > 800
    assert picture.std() > 20

    # The same command again trains nothing and prints the same table.
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoints/*")}
    again = command("demo", f"--output={tmp_path}")
    assert again[0] == 0
    assert f"| **mIoU** | {cells} |" in again[1]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/checkpoints/*")} == written


def test_the_video_demo_writes_metrics_curves_and_pictures(command, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "train", random_network)
    status, out, err = command("demo_video", f"--output={tmp_path}")
    assert status == 0, err
    assert out.startswith("Six networks are trained")
    assert "Training 6 of 6: demo_video_gc, GC\n" in out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics) == VIDEO
    rows = [line for line in out.splitlines() if "`demo_video_" in line]
    for row, (name, values) in zip(rows, metrics.items(), strict=True):
        assert row.endswith(f"(`{name}`) | {100 * values['top1']:.1f} |")
    curves, pictures = (cv2.imread(str(tmp_path / f"{n}.png")) for n in ("curves", "pictures"))
    assert curves.shape[1] > curves.shape[0] > 300
    assert pictures.shape[1] > 8 * 160
    assert pictures.shape[0] > 6 * 160
    assert min(curves.std(), pictures.std()) > 20


@pytest.mark.parametrize("demo", ["demo", "demo_video"])
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("saved", [True, False])
def test_a_demo_that_is_stopped_says_how_it_goes_on(
    command, tmp_path, monkeypatch, demo, number, saved
):
    def stop(*_, **__):
        if not saved:  # outside of the training loop
            signal.raise_signal(number)
        return train.Result(types.SimpleNamespace(variables={}), {}, number)

    monkeypatch.setattr(train, "train", stop)
    monkeypatch.setattr("os._exit", sys.exit)
    status, out, _ = command(demo, f"--output={tmp_path}")
    assert status == 128 + number
    assert out.endswith(f"\n{number.name}: run the same command again to go on from here\n")


@pytest.mark.parametrize(
    ("demo", "task", "metric", "mean", "names"),
    [
        (
            *("demo", "segmentation", "miou", "mean mIoU"),
            ["demo_fcn", "demo_gc", "demo_nonlocal", "demo_dnl"],
        ),
        ("demo_video", "classification", "top1_1clip", "mean top-1", VIDEO),
    ],
)
def test_seeds_give_a_table_of_all_networks(
    command, tmp_path, monkeypatch, demo, task, metric, mean, names
):
    def evaluator(config, source, quick):
        return lambda variables: {metric: names.index(config.name) / 8 + config.seed / 100}

    stub = dataclasses.replace(tasks.TASKS[task], evaluator=evaluator)
    monkeypatch.setitem(tasks.TASKS, task, stub)
    monkeypatch.setattr(train, "train", random_network)
    status, out, err = command(demo, f"--output={tmp_path}", "--seeds=3,6")
    assert status == 0, err
    table = (tmp_path / "seeds.md").read_text()
    assert table in out
    head, _, *rows = table.splitlines()
    assert head == f"| network | seed 3 | seed 6 | {mean} % |"
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        assert row.split("`")[1] == name
        cells = [float(cell) for cell in row.split("|")[2:-1]]
        assert cells == pytest.approx([12.5 * i + 3, 12.5 * i + 6, 12.5 * i + 4.5], abs=0.06)
