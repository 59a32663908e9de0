"""Mistakes in flags and configs end in one message, without a traceback, and exit status 2."""

import logging
import pathlib
import signal
import subprocess
import sys
import types

import pytest
from absl.logging import get_absl_handler

from experiments import cli
from nonlocal_jax import topology
from nonlocal_jax.configs import segmentation, video

ROOT = pathlib.Path(__file__).parents[2]

_CONFIG = "--config=configs/segmentation.py:demo_nonlocal"
_FLAGS = ("--topology=v5e:2x4", "--output=report.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*_FLAGS, _CONFIG, "--topolgy=v5e:2x4"], "Unknown command line flag 'topolgy'. Did you"),
        ([_CONFIG], "missing --topology and --output; run with --help to see all flags"),
        (_FLAGS, "missing --config; run with --help to see all flags"),
        ([*_FLAGS, "--config"], "Missing value for flag --config"),
        ([*_FLAGS, _CONFIG, "--batch_size=many"], "flag --batch_size=many: invalid literal"),
        ([*_FLAGS, _CONFIG, "--batch-size=0"], "flag --batch_size=0: 0 is not a positive"),
        ([*_FLAGS, _CONFIG, "steps=4"], "unexpected argument 'steps=4'; start flags with --"),
        ([*_FLAGS, _CONFIG, "--flagfile=none.txt"], "Unable to open flagfile"),
        ([*_FLAGS, _CONFIG, "--config.steps=many"], "flag --config.steps=many: invalid literal"),
        (
            [*_FLAGS, _CONFIG, "--config.stepz=4"],
            "unknown config field 'stepz'; did you mean --config.steps?",
        ),
        (
            [*_FLAGS, _CONFIG, "--config.batch_size=4"],
            "unknown config field 'batch_size'; did you mean --config.data.batch_size?",
        ),
        (
            [*_FLAGS, _CONFIG, "--config.model.dtype.name=x"],
            "unknown config field 'model.dtype.name'; did you mean --config.model.dtype?",
        ),
        (
            [*_FLAGS, _CONFIG, "--config.qqqqqq=4"],
            "unknown config field 'qqqqqq'; `train` writes all fields to config.json",
        ),
        ([*_FLAGS, "--config=Makefile"], "(Makefile, line"),
        ([*_FLAGS, "--config=configs/__init__.py"], "--config has no attribute 'get_config'"),
    ],
)
def test_mistakes_end_in_one_message(command, arguments, message):
    status, stdout, stderr = command("compile", *arguments)
    assert (status, stdout) == (2, "")
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert message in stderr


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("demo_nonlocal", "there is no file 'demo_nonlocal'; use {}segmentation.py:demo_nonlocal"),
        ("configs/none.py:demo_gc", "there is no file 'configs/none.py'; use {}segmentation.py:"),
        ("qqqqqq", "there is no file 'qqqqqq'; use --config=configs/FILE.py:NAME\n"),
        (
            "configs/segmentation.py:demo_fnc",
            "'demo_fnc'; use {}segmentation.py:demo_fcn\n",
        ),
        ("configs/segmentation.py:qqqqqq", "'qqqqqq'; use --config=configs/FILE.py:NAME\n"),
        ("configs/segmentation.py:demo_video_gc", "use {}video.py:demo_video_gc\n"),
        (
            "configs/segmentation.py:dnl",
            "use {0}segmentation.py:dnl_r50-d8_512x1024_40k_city",
        ),
        ("configs/video.py", "name of an experiment is missing; use --config=configs/FILE.py:N"),
    ],
)
@pytest.mark.parametrize("separate", [False, True])
def test_a_mistake_in_config_is_answered_in_two_lines(command, config, message, separate):
    flag = ["--config", config] if separate else [f"--config={config}"]
    status, stdout, stderr = command("compile", *_FLAGS, *flag, "--config.steps=4")
    assert (status, stdout) == (2, "")
    assert stderr.startswith(f"error: --config={config}: ")
    assert message.format("--config=configs/") in stderr
    assert stderr.endswith("\n`python -m experiments names` lists all experiments\n")
    assert stderr.count("\n") == 2


def test_a_config_is_found_from_another_directory(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, stderr = command("compile", *_FLAGS, _CONFIG, "--config.stepz=4")
    assert stderr == "error: unknown config field 'stepz'; did you mean --config.steps?\n"
    # A file in the working directory comes first.
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "segmentation.py").write_text("def get_config(name): return name.own")
    _, _, stderr = command("compile", *_FLAGS, _CONFIG)
    assert stderr == "error: 'str' object has no attribute 'own'\n"


def test_the_commands_are_listed(command):
    status, stdout, stderr = command("__main__")
    assert (status, stderr) == (0, "")
    for path in (ROOT / "experiments").glob("*.py"):
        name = path.stem
        assert (f"python -m experiments.{name} " in stdout) == (name[0] != "_" and name != "cli")
    assert "experiments.benchmark" in stdout
    assert "Trains an experiment." in stdout
    assert "--help" in stdout


def test_the_experiments_are_listed(command):
    status, stdout, stderr = command("__main__", "names")
    assert (status, stderr) == (0, "")
    configs = stdout.split()
    assert len(configs) == len(segmentation.NAMES) + len(video.NAMES) + len(video.ALIASES)
    assert {"configs/segmentation.py:demo_nonlocal", "configs/video.py:demo_video_gc"} < {*configs}

    status, stdout, stderr = command("__main__", "names", "demo_[dg]*")
    assert (status, stderr) == (0, "")
    assert stdout.split() == [f"configs/segmentation.py:{name}" for name in ("demo_dnl", "demo_gc")]
    status, stdout, stderr = command("__main__", "names", "nonlocal_r5")
    assert (status, stdout) == (2, "")
    assert stderr.startswith("error: no experiment matches 'nonlocal_r5'; ")
    assert "did you mean nonlocal_r50-d8_512x1024_40k_cityscapes or " in stderr


def test_a_command_that_is_not_a_module_is_explained(command):
    status, stdout, stderr = command("__main__", "train", _CONFIG)
    assert (status, stdout) == (2, "")
    assert stderr == f"error: use `python -m experiments.train {_CONFIG}`\n"
    status, _, stderr = command("__main__", "nams")
    assert status == 2
    assert stderr.startswith("error: unknown argument 'nams'; use `python -m experiments.COMMAND`")


def test_a_mistake_in_a_flag_file_is_named(command, tmp_path):
    file = tmp_path / "own.flags"
    file.write_text(f"# comment\n{_CONFIG}\n--config.data.nam=own\n--batch-size=2\n")
    status, _, stderr = command("compile", *_FLAGS, f"--flagfile={file}")
    assert status == 2
    assert stderr == "error: unknown config field 'data.nam'; did you mean --config.data.name?\n"


def test_seeds_are_integers(command):
    status, _, stderr = command("demo", "--seeds=0,x")
    assert (status, stderr) == (2, "error: flag --seeds=['0', 'x']: use integers, such as 0,1,2\n")


@pytest.mark.parametrize("flag", ["--help", "--helpfull"])
def test_help_explains_the_config_and_all_flags(command, flag):
    status, stdout, stderr = command("compile", flag)
    assert (status, stderr) == (0, "")
    assert "--topology" in stdout
    text = " ".join(stdout.split())
    assert "--config: Experiment: configs/FILE.py:NAME. `python -m experiments names`" in text
    assert "--config.steps=100" in text


def test_the_tpu_compiler_is_found_under_its_earlier_name():
    assert cli.use_tpu_compiler is topology.use_tpu_compiler


def test_orbax_logs_nothing(command):
    command("compile")
    handler = get_absl_handler()
    shown = []
    for path in ("/lib/orbax/checkpoint/a.py", "/lib/nonlocal_jax/convert/_orbax.py"):
        record = logging.LogRecord("absl", logging.ERROR, path, 1, "text", (), None)
        shown.append(bool(handler.filter(record)))
    assert shown == [False, True]


# What `python -m experiments.COMMAND` does before it imports JAX.
_START = "import sys; sys.argv[0] = '-m'; import os, signal; import experiments; "


def test_ctrl_c_while_a_command_starts_prints_nothing():
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"{_START} os.kill(os.getpid(), signal.SIGINT)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_no_file_takes_the_place_of_a_closed_stderr(tmp_path):
    file = tmp_path / "file"
    code = f"{_START} print(os.open({str(file)!r}, os.O_CREAT | os.O_WRONLY), sys.stderr)"
    command = f'exec {sys.executable} -c "{code}" 2>&-'
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True, check=True)
    descriptor, stderr = done.stdout.split()
    assert (int(descriptor) > 2, stderr) == (True, "None")


@pytest.mark.parametrize("text", ["Event loop is closed", "something else"])
def test_what_threads_of_a_failed_save_raise_is_not_shown(monkeypatch, text):
    shown = []
    monkeypatch.setattr(sys, "__unraisablehook__", shown.append)
    cli._report_unraisable(types.SimpleNamespace(exc_value=RuntimeError(text)))
    assert len(shown) == (text == "something else")
