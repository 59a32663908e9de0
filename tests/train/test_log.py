import json
import math

import jax.numpy as jnp
import pytest

from nonlocal_jax.train import NonFiniteError
from nonlocal_jax.train.log import Monitor, RunLog
from tests.helpers import read_metrics


def _metrics(loss=1.0, grad_norm=1.0, param_norm=1.0):
    return {
        "loss": jnp.float32(loss),
        "grad_norm": jnp.float32(grad_norm),
        "param_norm": jnp.float32(param_norm),
        "accuracy": jnp.float32(0.5),
        "learning_rate": jnp.float32(0.1),
    }


def _monitor(tmp_path, **options):
    log = RunLog(tmp_path, 0, "miou")
    return log, Monitor(log, **{"steps": 7, "log_every": 3, "batch_size": 4, **options})


def test_one_json_object_a_logged_step(tmp_path, capsys):
    _, monitor = _monitor(tmp_path)
    for step in range(1, 8):
        monitor.add(step, _metrics(loss=step))
    monitor.flush()
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [3, 6, 7]
    assert [line["train/loss"] for line in lines] == [3.0, 6.0, 7.0]
    assert all(line["train/examples_per_second"] > 0 for line in lines)
    assert "step 7/7  loss 7  accuracy 0.5  learning_rate 0.1" in capsys.readouterr().out


@pytest.mark.parametrize("bad", ["loss", "grad_norm", "param_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_step_that_is_not_finite_is_named(tmp_path, bad, value):
    _, monitor = _monitor(tmp_path, log_every=100)
    for step, metrics in enumerate([_metrics(), _metrics(**{bad: value}), _metrics(loss=-1)], 1):
        monitor.add(step, metrics)
    with pytest.raises(NonFiniteError, match=rf"{bad} is {value} at step 2, "):
        monitor.flush()


def test_records_beyond_the_restored_step_are_dropped(tmp_path):
    records = [
        {"step": 2, "train/loss": 3.0},
        {"step": 2, "val/miou": 0.5},
        {"step": 4, "train/loss": 2.0},
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 5, "lo')
    log = RunLog(tmp_path, 3, "miou")
    assert read_metrics(tmp_path) == log.records == records[:2]
    assert log.was_evaluated(2)
    assert not log.was_evaluated(4)
    log.add(4, "train", {"loss": 1.0})
    assert read_metrics(tmp_path)[-1] == {"step": 4, "train/loss": 1.0}
    assert log.latest() == {"step": 4, "train/loss": 1.0, "val/miou": 0.5}
