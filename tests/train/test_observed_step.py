"""Traces that cannot be written."""

import pytest
from etils import epath

from nonlocal_jax.errors import InputError
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
