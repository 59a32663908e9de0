"""A new task needs one small module and no change of the library."""

import json
import pathlib
import pickle
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from nonlocal_jax import convert, tasks
from nonlocal_jax.configs.common import base_config
from tests.helpers import child_environment, read_metrics, train, wait_for_step
from tests.train import toy_task


@pytest.fixture
def config():
    config = base_config("toy", task="toy", steps=40, learning_rate=0.1, weight_decay=0.0)
    config.model = {"network": "toy"}
    config.data.batch_size = 8
    config.train.update(log_every=1, checkpoint_every=5, evaluate_every=20)
    return config


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    signals = rng.standard_normal((16, 6, 2), np.float32)
    labels = signals.mean(1).argmax(-1)[:, None].astype(np.int32)
    weight = np.ones(1, np.float32)
    return [
        {"signal": signal, "label": label, "weight": weight}
        for signal, label in zip(signals, labels, strict=True)
    ]


def test_it_is_small():
    lines = pathlib.Path(toy_task.__file__).read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 40


def test_it_trains_resumes_after_sigkill_and_evaluates(config, source, tmp_path, start):
    killed = start(imports=["tests.train.toy_task"])
    wait_for_step(killed, 8)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    evaluate = tasks.get_task(config).evaluator(config, source)
    runs = [train(config, tmp_path / name, source, evaluate=evaluate) for name in ("run", "other")]
    for a, b in zip(*(jax.tree.leaves(run.state.params) for run in runs), strict=True):
        np.testing.assert_array_equal(a, b)
    records = read_metrics(tmp_path / "run")
    assert [r["step"] for r in records if "train/entropy" in r] == list(range(1, 41))
    assert [r["step"] for r in records if "val/accuracy" in r] == [20, 40]
    assert records[-1]["val/accuracy"] > 0.8
    assert evaluate(convert.load(tmp_path / "run", config.model)) == {
        "accuracy": records[-1]["val/accuracy"]
    }


_COMPILE = """
import json, pickle, sys
from nonlocal_jax.topology import use_tpu_compiler
use_tpu_compiler()
from nonlocal_jax.train import compile_train_step
from tests.train import toy_task
print(json.dumps(compile_train_step(pickle.loads(sys.stdin.buffer.read()), "v5e:2x4")))
"""


@pytest.mark.usefixtures("libtpu")
def test_it_compiles_for_a_pod(config):
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE],
        input=pickle.dumps(config),
        env=child_environment(),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert report["batch"] == {
        "signal": "float32[8,6,2]",
        "label": "int32[8,1]",
        "weight": "float32[8,1]",
    }
    assert report["flops_per_chip"] > 0
