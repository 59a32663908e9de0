"""The first step of several processes, and traces that cannot be written."""

import jax
import numpy as np
import pytest
from etils import epath

from nonlocal_jax import distributed
from nonlocal_jax.compilation import count_programs
from nonlocal_jax.errors import InputError
from nonlocal_jax.train import _observed_step
from nonlocal_jax.train._observed_step import ObservedStep
from tests.helpers import bucket_in_memory, train


def test_a_wrong_place_is_refused_before_the_first_step(config, source, tmp_path):
    (tmp_path / "profile").touch()
    with pytest.raises(InputError, match="profile is a file; use a directory"):
        train(config, tmp_path, source, profile=(2, 3))
    assert not (tmp_path / "checkpoints").exists()
    config.steps = 1
    train(config, tmp_path, source)


@pytest.mark.parametrize("last", [1, 5])
@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_trace_that_cannot_be_written_is_one_warning(tmp_path, monkeypatch, place, last):
    """At its last step, or at the end of the run."""

    def fail(path, data):
        raise RuntimeError("403 Forbidden")

    if place == "disk":
        (tmp_path / "profile").touch()
        directory, reason = epath.Path(tmp_path / "profile"), "Not a directory"
    else:
        bucket_in_memory(monkeypatch)
        directory, reason = epath.Path("gs://bucket/run/profile"), "RuntimeError: 403 Forbidden"
        monkeypatch.setattr(type(directory), "write_bytes", fail)
    said = []
    step = ObservedStep(
        lambda state, batch: (state, {"loss": 0.0}), 0, said.append, (1, last), directory
    )
    with step:
        for state in range(3):
            assert step(state, {})[0] == state
    (warning,) = (line for line in said if line.startswith("warning: "))
    assert warning.startswith(f"warning: cannot write a trace to {directory}: {reason}")
    assert warning.endswith("; the training goes on without it")
    assert not any("traced the steps until" in line for line in said)


def test_processes_wait_for_each_other_after_they_have_compiled(tmp_path, monkeypatch):
    programs_before = []
    monkeypatch.setattr(_observed_step, "_collectives_time_out", lambda: True)
    monkeypatch.setattr(distributed, "gather", lambda _: programs_before.append(programs["built"]))
    train_step = jax.jit(lambda state, batch: (state + 1, batch), donate_argnums=0)
    step = ObservedStep(train_step, 0, print, None, epath.Path(tmp_path))
    state = jax.numpy.zeros(7)
    with count_programs() as programs:
        for _ in range(2):
            state, _ = step(state, np.ones(3))
    assert programs_before == [1]
    assert programs["built"] == 1  # the call does not compile again
    np.testing.assert_array_equal(state, np.full(7, 2))
