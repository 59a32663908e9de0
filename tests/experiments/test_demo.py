"""The demo with tiny networks, little data and short runs."""

import json
import types

import cv2
import numpy as np
import pytest

from configs import segmentation
from nonlocal_jax import data, train
from tests import helpers


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    get_config, load_source = segmentation.get_config, data.load_source

    def shrink(name):
        config = get_config(name)
        config.steps = 2
        config.data.batch_size = 2
        config.model.update(width=4, head_channels=8, auxiliary_channels=4)
        return config

    def shorten(name, split):
        source = load_source(name, split)
        return [source[i] for i in range(16)]

    monkeypatch.setattr(segmentation, "get_config", shrink)
    monkeypatch.setattr(data, "load_source", shorten)
    monkeypatch.setattr(train, "train", helpers.train)


def test_the_demo_writes_metrics_and_pictures_of_both_networks(command, tmp_path):
    status, out, err = command("demo", f"--output={tmp_path}")
    assert status == 0, err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert sorted(metrics) == ["demo_fcn", "demo_nonlocal"]
    for network in metrics.values():
        assert network["miou"] == pytest.approx(np.mean(list(network["iou"].values())))
    cells = " | ".join(f"{100 * metrics[n]['miou']:.1f}" for n in ("demo_fcn", "demo_nonlocal"))
    assert f"| **mIoU** | {cells} |" in out
    picture = cv2.imread(str(tmp_path / "pictures.png"))
    assert picture.shape[1] > picture.shape[0] > 800
    assert picture.std() > 20

    # The same command again trains nothing and prints the same table.
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoints/*")}
    again = command("demo", f"--output={tmp_path}")
    assert again[0] == 0
    assert f"| **mIoU** | {cells} |" in again[1]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/checkpoints/*")} == written


def test_seeds_give_a_table_of_all_networks(command, tmp_path, monkeypatch):
    def random_network(config, workdir, source, evaluate):
        variables = helpers.random_variables(config.model, config.seed)
        return train.Result(types.SimpleNamespace(variables=variables), {}, None)

    monkeypatch.setattr(train, "train", random_network)
    status, out, err = command("demo", f"--output={tmp_path}", "--seeds=3")
    assert status == 0, err
    table = (tmp_path / "seeds.md").read_text()
    assert table in out
    head, _, *rows = table.splitlines()
    assert head == "| network | seed 3 | mean mIoU % |"
    assert [row.split("`")[1] for row in rows] == [
        "demo_fcn",
        "demo_gc",
        "demo_nonlocal",
        "demo_dnl",
    ]
    for row in rows:
        seed, mean = map(float, row.split("|")[2:-1])
        assert seed == mean > 0
