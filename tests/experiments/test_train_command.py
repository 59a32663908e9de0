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
    environment = child_environment()
    cache = f"--compilation-cache={tmp_path / 'cache'}"

    def start(*arguments):
        command = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path / 'run'}"]
        return subprocess.Popen(
            [*command, cache, *_ARGUMENTS, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    return start


def test_stop_go_on_and_refuse(tmp_path, start, command):
    stopped = start("--profile=1:2")
    wait_for_step(stopped, 2)
    stopped.send_signal(signal.SIGTERM)
    out, err = stopped.communicate()
    assert stopped.returncode == 0, err
    saved = re.search(r"SIGTERM: saved step (\d+); run the same command to resume\n$", out)
    assert f"\nsaved step {saved[1]}\n" in out
    assert err.startswith("no cluster detected: running on one process\n")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    assert "Traceback" not in err

    finished = start()
    out, err = finished.communicate()
    assert finished.returncode == 0, err
    assert "of 30\n" in out
    lines = out.splitlines()
    assert lines[1] == "compiling the train step; this takes minutes for a large network"
    assert lines[2].startswith("read from the cache in ")
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

    other = [f"--workdir={tmp_path / 'run'}", *_ARGUMENTS, "--config.seed=1"]
    status, _, err = command("train", *other)
    assert status == 2
    assert err.startswith("error: ")
    assert "seed is 0 in the checkpoint, 1 in the config" in err
    assert "Traceback" not in err


def test_what_is_no_flag_is_refused(tmp_path, command):
    workdir = f"--workdir={tmp_path / 'run'}"
    status, _, errors = command("train", workdir, *_ARGUMENTS, "config.steps=4")
    assert status == 2
    assert errors == "error: unexpected argument 'config.steps=4'; start flags with --\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("data.crop=64x64", "data.crop is ('64x64',); use two positive integers"),
        ("data.crop=64", "data.crop is (64,); use two positive integers"),
        (
            "data.scale_range=(-1.0,2.0)",
            "data.scale_range is (-1.0, 2.0); use two positive numbers in increasing order",
        ),
        (
            "data.scale_range=(2,1)",
            "data.scale_range is (2, 1); use two positive numbers in increasing order",
        ),
        ("data.mean=(1.0,2.0)", "data.mean is (1.0, 2.0); use three numbers"),
        ("data.flip=3", "data.flip is 3.0; use a number of at least 0 and at most 1"),
        ("evaluation.stride=(32,)", "evaluation.stride is (32,); use two positive integers"),
        (
            "model.head_kernel_size=2",
            "head_kernel_size is 2; use an integer of at least 1 that is odd",
        ),
        ("model.dropout=2", "dropout is 2.0; use a number from 0 to 1"),
        (
            "model.temperature=1",
            "unknown config field 'model.temperature'; "
            "did you mean --config.model.block_temperature?",
        ),
        (
            "data.batch_size=5000",
            "data.batch_size=5000 is larger than the number of training examples; use at most 2048",
        ),
    ],
)
def test_a_wrong_value_is_named(command, tmp_path, flag, message):
    experiment = "--config=configs/segmentation.py:demo_dnl"
    status, _, errors = command("train", experiment, f"--workdir={tmp_path}", f"--config.{flag}")
    assert (status, errors) == (2, f"error: {message}\n")


def test_an_integer_is_accepted_for_a_number(command, tmp_path):
    experiment = "--config=configs/segmentation.py:demo_dnl"
    status, _, errors = command(
        *("browse", experiment, f"--output={tmp_path}", "--number=1"),
        *("--config.model.block_temperature=1", "--config.optimizer.learning_rate=1"),
    )
    assert status == 0, errors
