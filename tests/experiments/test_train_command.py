"""The command itself; what it calls is tested in tests/train."""

import re
import signal
import subprocess
import sys

import pytest

from tests.helpers import child_environment, read_metrics, wait_for_step

_ARGUMENTS = [
    "--config=configs/segmentation.py:demo_fcn",
    "--config.model.width=8",
    "--config.data.batch_size=8",
    "--config.steps=30",
    "--config.train.log_every=1",
    "--config.train.evaluate_every=30",
]


@pytest.fixture
def start(tmp_path):
    """Starts the command in a process."""
    environment = child_environment(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"))

    def start(*arguments):
        command = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path / 'run'}"]
        return subprocess.Popen(
            [*command, *_ARGUMENTS, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    return start


def test_stop_go_on_and_refuse(tmp_path, start):
    stopped = start()
    wait_for_step(stopped, 2)
    stopped.send_signal(signal.SIGTERM)
    out, err = stopped.communicate()
    assert stopped.returncode == 0, err
    assert "SIGTERM: saved step" in out
    assert "Traceback" not in err

    finished = start()
    out, err = finished.communicate()
    assert finished.returncode == 0, err
    assert "of 30\n" in out
    lines = out.splitlines()
    assert lines[1] == "compiling the train step; this takes minutes for a large network"
    # The metrics that matter come first.
    assert re.fullmatch(
        r"done: step 30  val/miou [\d.e-]+  val/mean_accuracy [\d.e-]+  "
        r"val/overall_accuracy [\d.e-]+  train/loss [\d.e-]+",
        lines[-1],
    )
    assert "WARNING" not in err
    records = read_metrics(tmp_path / "run")
    assert [r["step"] for r in records if "train/loss" in r] == list(range(1, 31))
    assert [r["step"] for r in records if "val/miou" in r] == [30]

    other = start("--config.seed=1")
    out, err = other.communicate()
    assert other.returncode == 2
    assert err.startswith("error: ")
    assert "seed is 0 in the checkpoint, 1 in the config" in err
    assert "Traceback" not in err


def test_what_is_no_flag_is_refused(tmp_path, start):
    run = start("config.steps=4")
    _, errors = run.communicate()
    assert run.returncode == 2
    assert errors == "error: unexpected argument 'config.steps=4'; start flags with --\n"
    assert not (tmp_path / "run").exists()
