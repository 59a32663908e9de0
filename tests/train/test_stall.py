"""The stacks of a step that hangs."""

import time

import pytest

from nonlocal_jax.train._stall import StallReport


def test_a_step_that_takes_too_long_prints_the_stacks_once(capfd):
    with StallReport(0.1) as stall:
        stall.start_step()
        stall.pause()
        time.sleep(0.2)  # an evaluation
        assert "Timeout" not in capfd.readouterr().err
        for _ in range(2):
            stall.start_step()
            time.sleep(0.3)
    err = capfd.readouterr().err
    assert err.count("Timeout (0:00:00.100000)!") == 1
    assert "test_stall.py" in err


@pytest.mark.parametrize("timeout", [None, 0.0])
def test_without_a_timeout_nothing_is_printed(capfd, timeout):
    with StallReport(timeout) as stall:
        stall.start_step()
    assert not capfd.readouterr().err
