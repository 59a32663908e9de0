"""Processes find, tell and leave each other. Runs that are killed or stopped are in tests/pods."""

import pathlib
import subprocess
import sys
import time
from unittest import mock

import jax
import pytest

from nonlocal_jax import distributed
from nonlocal_jax.errors import InputError
from tests.helpers import child_environment
from tests.pods.pair import jax_variables

_SLURM = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}
# What `salloc` sets for its shell on a node.
_INTERACTIVE = {**_SLURM, "SLURM_STEP_NODELIST": "node1", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.fixture
def initialize(monkeypatch):
    """JAX's function, which fails here: the devices are in use already."""
    error = ValueError("coordinator_address should be defined.")
    initialize = mock.Mock(side_effect=error)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return initialize


def test_without_a_cluster_a_run_goes_on_alone(initialize, capsys):
    distributed.initialize("auto")
    initialize.assert_called_once()
    assert capsys.readouterr().err == "no cluster detected: running on one process\n"
    assert distributed.is_first()
    distributed.initialize("off")
    initialize.assert_called_once()
    with pytest.raises(InputError, match=r"no cluster .*JAX_COORDINATOR_ADDRESS=.*=off"):
        distributed.initialize("on")


@pytest.mark.parametrize(
    "variable",
    ["JAX_COORDINATOR_ADDRESS", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX"],
)
def test_with_a_sign_of_a_cluster_it_does_not(initialize, monkeypatch, variable):
    monkeypatch.setenv(variable, "4")
    with pytest.raises(InputError, match=f"with {variable} set; .*--distributed=off"):
        distributed.initialize("auto")


@pytest.mark.parametrize("name", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_a_variable_that_is_no_integer_is_named(initialize, monkeypatch, name):
    monkeypatch.setenv(name, "abc")
    with pytest.raises(InputError, match=f"^{name} is 'abc', which is not an integer; set it to"):
        distributed.initialize("auto")
    initialize.assert_not_called()


@pytest.mark.parametrize("variables", [_SLURM, _INTERACTIVE])
def test_a_job_of_several_tasks_needs_srun(initialize, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    command = ["python3", "-m", "experiments.train", "--workdir=my run"]
    monkeypatch.setattr(sys, "orig_argv", command)
    with pytest.raises(InputError, match="has 4 tasks") as error:
        distributed.initialize("auto")
    assert "\n  srun python3 -m experiments.train '--workdir=my run'\n" in str(error.value)
    initialize.assert_not_called()


def test_a_process_that_fails_before_it_uses_a_device_does_not_wait(tmp_path):
    program = (
        "import nonlocal_jax as nlj, os, time\n"
        "nlj.distributed.initialize('on', heartbeat_timeout=5)\n"
        "if os.environ['JAX_PROCESS_ID'] == '1': raise RuntimeError('early')\n"
        "time.sleep(60)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=child_environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for variables in jax_variables(2)
    ]
    begin = time.monotonic()
    _, error = processes[1].communicate(timeout=50)
    processes[0].communicate(timeout=50)
    assert processes[1].returncode == 1, error
    assert error.count("RuntimeError: early\n") == 1, error
    assert processes[0].returncode != 0
    assert time.monotonic() - begin < 50


def test_two_processes_agree_and_do_not_wait_for_a_lost_one(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, pathlib.Path(__file__).with_name("two_processes.py"), tmp_path],
            env=child_environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for variables in jax_variables(2)
    ]
    lost = processes[1].communicate()
    begin = time.monotonic()
    other = processes[0].communicate()
    assert "agreed" in lost[0], lost
    assert "agreed" in other[0], other
    assert processes[1].returncode == 1, lost
    assert lost[1].count("RuntimeError: lost\n") == 1, lost
    assert processes[0].returncode != 0, other
    assert time.monotonic() - begin < 2 * 5
