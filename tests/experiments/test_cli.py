"""Mistakes in flags and configs end in one message, without a traceback, and exit status 2."""

import logging

import pytest
from absl.logging import get_absl_handler

from experiments import cli
from nonlocal_jax import topology

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
            "unknown config field 'qqqqqq'; see configs/segmentation.py",
        ),
        (
            [*_FLAGS, "--config=configs/none.py:demo_nonlocal"],
            "there is no file 'configs/none.py'; use --config=configs/FILE.py:NAME",
        ),
        (
            [*_FLAGS, "--config", "configs/none.py:demo_nonlocal", "--config.steps=4"],
            "there is no file 'configs/none.py'; use --config=configs/FILE.py:NAME",
        ),
        ([*_FLAGS, "--config=Makefile"], "(Makefile, line"),
        ([*_FLAGS, "--config=configs/__init__.py"], "--config has no attribute 'get_config'"),
        ([*_FLAGS, "--config=configs/segmentation.py:demo_fnc"], "did you mean 'demo_fcn'"),
    ],
)
def test_mistakes_end_in_one_message(command, arguments, message):
    status, stdout, stderr = command("compile", *arguments)
    assert (status, stdout) == (2, "")
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert message in stderr


def test_a_mistake_in_a_flag_file_is_named(command, tmp_path):
    file = tmp_path / "own.flags"
    file.write_text(f"# comment\n{_CONFIG}\n--config.data.nam=own\n--batch-size=2\n")
    status, _, stderr = command("compile", *_FLAGS, f"--flagfile={file}")
    assert status == 2
    assert stderr == "error: unknown config field 'data.nam'; did you mean --config.data.name?\n"


def test_seeds_are_integers(command):
    status, _, stderr = command("demo", "--seeds=0,x")
    assert (status, stderr) == (2, "error: flag --seeds=['0', 'x']: use integers, such as 0,1,2\n")


def test_help_prints_all_flags(command):
    status, stdout, stderr = command("compile", "--help")
    assert status in (0, 1)
    assert "--topology" in stdout
    assert stderr == ""


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
