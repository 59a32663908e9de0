import gzip
import json
import os
import re
import shutil
from collections import Counter

import jax
import numpy as np
import pytest

from nonlocal_jax import convert
from nonlocal_jax.configs.video import get_config
from nonlocal_jax.data import Dataset
from nonlocal_jax.errors import InputError
from nonlocal_jax.tasks import get_task
from nonlocal_jax.train import NonFiniteError, loop
from nonlocal_jax.train._memory import memory_errors
from tests.helpers import one_device, read_metrics, train


class Evaluate:
    """Counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, variables):
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))
        self.calls += 1
        return {"miou": 0.1 * self.calls}


class Own(list):
    """Examples with classes."""

    dataset = Dataset("own", ("a", "b", "c"), ((0, 0, 0), (1, 2, 3), (255, 0, 0)))


def _saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_a_run_and_what_it_leaves(config, source, tmp_path, capsys):
    evaluate = Evaluate()
    result = train(config, tmp_path / "run", source, evaluate=evaluate, profile=(2, 3))
    assert result.signal is None
    assert int(result.state.step) == 6
    assert result.metrics["val/miou"] == 0.2
    records = read_metrics(tmp_path / "run")
    assert [r["step"] for r in records if "train/loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if "val/miou" in r] == [3, 6]
    assert _saved(tmp_path / "run") == [2, 4, 6]
    assert convert.read_dataset(tmp_path / "run") is None
    saved_config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved_config == json.loads(config.to_json())
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch("(compiled|read from the cache) in .+", lines[2])
    assert any(line.startswith("step 6/6") for line in lines)
    assert f"traced the steps until 3 in {tmp_path / 'run' / 'profile'}" in lines
    (trace,) = (tmp_path / "run" / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {event["args"]["step_num"] for event in events if "step_num" in event.get("args", {})}
    assert steps == {"2", "3"}

    # A finished run does nothing more, unless it was killed before its last evaluation.
    with pytest.raises(InputError, match=r"--profile=3:7 .* use FIRST:LAST from 1 to 6"):
        train(config, tmp_path / "run", source, profile=(3, 7))
    again = train(config, tmp_path / "run", source, evaluate=evaluate)
    assert int(again.state.step) == 6
    assert evaluate.calls == 2
    assert read_metrics(tmp_path / "run") == records
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines[:-1]))
    train(config, tmp_path / "run", source, evaluate=evaluate)
    assert evaluate.calls == 3


@pytest.mark.parametrize("warmup_steps", [0, 1, 2, 5])
def test_a_run_that_ends_in_the_warm_up_has_a_warning(
    config, source, tmp_path, capsys, warmup_steps
):
    config.steps = 2
    config.schedule.warmup_steps = warmup_steps
    assert int(train(config, tmp_path / "run", source).state.step) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if "warm-up" in line]
    if warmup_steps < 2:
        assert lines == []
    else:
        (line,) = lines
        assert line.startswith(f"warning: the run ends in the warm-up of {warmup_steps} steps, ")
        assert line.endswith("set schedule.warmup_steps to less than 2 steps")


def test_the_same_seed_gives_the_same_parameters(config, source, tmp_path):
    runs = [train(config, tmp_path / name, source).state.params for name in "ab"]
    config.seed = 1
    other = train(config, tmp_path / "c", source).state.params
    a, b, c = (jax.tree.leaves(jax.device_get(run)) for run in (*runs, other))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    assert any(not np.array_equal(x, y) for x, y in zip(a, c, strict=True))


@pytest.fixture
def lookups():
    """Counts how often JAX looks for a program in its cache, and how often it finds one."""
    events = Counter()

    def add(event, **_):
        events[event.rpartition("/")[2]] += 1

    jax.monitoring.register_event_listener(add)
    yield events
    jax.monitoring.unregister_event_listener(add)


def test_a_second_start_compiles_nothing(config, source, tmp_path, lookups):
    """Neither the steps nor what is around them, in any thread, also if the run is resumed.

    The tests of this directory have a cache that the first run fills.
    """
    config.steps = 2
    config.train.update(checkpoint_every=1, evaluate_every=2)

    def start(name):
        jax.clear_caches()
        lookups.clear()
        evaluate = get_task(config).evaluator(
            config, source[:2], quick=True, shardings=one_device()
        )
        train(config, tmp_path / name, source, evaluate=evaluate)
        return lookups["compile_requests_use_cache"], lookups["cache_hits"]

    start("a")
    looked_for, found = start("b")
    assert found == looked_for > 0
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "2")
    looked_for, found = start("a")
    assert found == looked_for > 0


def test_tensorboard_has_the_records(config, source, tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    config.steps = 2
    train(config, tmp_path, source)
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, found = path.read_bytes(), set()
    while data:  # records: length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        assert masked_crc32c(data[:8]) == int.from_bytes(data[8:12], "little")
        event = Event.FromString(data[12 : 12 + size])
        found |= {(event.step, v.tag, v.simple_value) for v in event.summary.value}
        data = data[16 + size :]
    expected = {
        (record["step"], name, float(np.float32(value)))
        for record in read_metrics(tmp_path)
        for name, value in record.items()
        if name != "step"
    }
    assert found == expected


def test_workers_and_a_cache_change_nothing_and_may_change_when_resuming(config, source, tmp_path):
    config.data.update(flip=0.5, photometric=True)
    expected = train(config, tmp_path / "threads", source)
    config.data.update(workers=1, cache=str(tmp_path / "cache"))
    runs = [train(config, tmp_path / "run", source)]
    assert any(path.is_dir() for path in (tmp_path / "cache").iterdir())
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    del config.data.workers, config.data.cache  # as in configs of other projects
    runs.append(train(config, tmp_path / "run", source))
    for run in runs:
        jax.tree.map(np.testing.assert_array_equal, run.state.params, expected.state.params)


def test_a_loss_that_is_not_finite_ends_the_run(config, source, tmp_path, monkeypatch, capsys):
    """Step 5 fails; nothing of it or after it is saved, and going on fails there again.

    Its images have another type, so it is compiled again.
    """
    train_batches = loop.train_batches

    def poisoned(*args, step, **kwargs):
        for number, batch in enumerate(train_batches(*args, step=step, **kwargs), step + 1):
            image = batch["image"].astype(np.float32)
            yield {**batch, "image": image * np.nan} if number == 5 else batch

    monkeypatch.setattr(loop, "train_batches", poisoned)
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="loss is nan at step 5"):
            train(config, tmp_path, source)
        assert _saved(tmp_path) == [2, 4]
        assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4]
    warning, *_ = (line for line in capsys.readouterr().out.splitlines() if "again" in line)
    assert warning.startswith("warning: step 5 compiled the train step again, in ")


def test_parameters_that_overflow_are_never_saved(config, source, tmp_path):
    """After a first step that failed, the work directory takes another config."""
    learning_rate = config.optimizer.learning_rate
    config.optimizer.learning_rate = 1e38
    with pytest.raises(NonFiniteError, match="at step 1"):
        train(config, tmp_path, source)
    assert not (tmp_path / "checkpoints").exists()
    config.optimizer.learning_rate = learning_rate
    assert int(train(config, tmp_path, source).state.step) == 6
    assert json.loads((tmp_path / "config.json").read_text())["optimizer"]["learning_rate"] < 1


def test_init_starts_from_a_checkpoint_and_resume_goes_before_it(
    config, source, tmp_path, monkeypatch
):
    started, create_state = [], loop.create_state

    def record(experiment, shardings, variables, dtype):
        started.append(variables)
        return create_state(experiment, shardings, variables, dtype)

    monkeypatch.setattr(loop, "create_state", record)
    config.steps = 1
    first = jax.device_get(train(config, tmp_path / "first", source).state.variables)
    config.seed = 1
    train(config, tmp_path / "second", source, init=tmp_path / "first")
    jax.tree.map(np.testing.assert_array_equal, started[-1], first)

    third, source = tmp_path / "third", Own(source)
    asked = {"reinit_head": True, "new_blocks": True}
    for option in asked:
        with pytest.raises(InputError, match=f"{option} is set, but there is no checkpoint to"):
            train(config, third, source, **{option: True})
        assert not third.exists()
    train(config, third, source, init=tmp_path / "first", **asked)
    start = started[-1]
    heads = [
        variables["params"]["decode_head"]["conv_seg"]["kernel"] for variables in (start, first)
    ]
    assert not np.array_equal(*heads)
    fresh = convert.load(tmp_path / "first", config.model, **asked, seed=1)
    jax.tree.map(np.testing.assert_array_equal, start, fresh)
    for place in (".", "checkpoints/1"):
        assert convert.read_dataset(third / place) == Own.dataset.to_json()
    # The checkpoint is not read again.
    (tmp_path / "first").rename(tmp_path / "gone")
    train(config, third, source, init=tmp_path / "first", **asked)


def test_a_dataset_with_other_classes_than_the_model_is_refused(config, source, tmp_path):
    config.model.num_classes = 4
    with pytest.raises(InputError, match="has 3 classes, but the model predicts 4"):
        train(config, tmp_path / "run", Own(source))
    assert not list(tmp_path.glob("run/*"))


def test_a_full_memory_is_one_message(config, source, tmp_path, monkeypatch):
    error = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."

    def fail(*_):
        raise jax.errors.JaxRuntimeError(f"{error}\nMore")

    monkeypatch.setattr(loop, "make_train_step", lambda *_: fail)
    with pytest.raises(InputError) as raised:
        train(config, tmp_path / "run", source)
    message = str(raised.value)
    assert message.startswith(f"out of memory ({error}); use a smaller data.batch_size (now 4)")
    for change in (
        "a smaller data.crop (now 16x16)",
        "mesh.context, to split each example over devices (now 1)",
        "model.dtype=bfloat16 (now float32)",
    ):
        assert change in message
    assert message.endswith("; fields other than mesh.* and train.* need a new --workdir")
    assert "frames" not in message  # the config has no such field
    assert "\n" not in message

    video = get_config("demo_video_nonlocal")
    message = r"frames \(now \d+\), .*train.remat=full \(now none"
    with pytest.raises(InputError, match=message), memory_errors(video):
        raise MemoryError("Unable to allocate 9 GiB")
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"^INTERNAL"), memory_errors(video):
        raise jax.errors.JaxRuntimeError("INTERNAL: other")


@pytest.mark.parametrize("name", ["steps", "train.log_every", "data.batch_size"])
def test_counts_below_one_are_refused(config, source, tmp_path, name):
    config.update_from_flattened_dict({name: 0})
    with pytest.raises(InputError, match=rf"{name} .*positive integer"):
        train(config, tmp_path / "run", source)
    assert not (tmp_path / "run").exists()


def test_a_seed_out_of_range_is_refused(config, source, tmp_path):
    config.seed = -1
    with pytest.raises(InputError, match="seed is -1; use"):
        train(config, tmp_path, source)


def test_a_resumed_run_keeps_the_checkpoint_that_it_started_from(
    config, source, tmp_path, monkeypatch
):
    first, other = tmp_path / "first", tmp_path / "other"
    train(config, first, source)
    shutil.copytree(first, other)
    run, fresh = tmp_path / "run", tmp_path / "fresh"
    config.steps = 2
    train(config, run, source, init=first)
    train(config, fresh, source)
    with pytest.raises(
        InputError, match=r"fresh has checkpoints of a run that started from random "
    ):
        train(config, fresh, source, init=first)
    # Neither the same command nor one without --init changes where the run started.
    train(config, run, source)
    monkeypatch.chdir(tmp_path)
    train(config, run, source, init="first")
    with pytest.raises(
        InputError, match=r"started from .*first, not from .*other; use a new --work"
    ):
        train(config, run, source, init=other)


def test_a_source_without_random_access_is_refused(config, source, tmp_path):
    with pytest.raises(InputError, match="source is of type generator, without len"):
        train(config, tmp_path, (example for example in source))


def test_a_type_that_is_not_floating_is_refused(config, source, tmp_path):
    with pytest.raises(InputError, match="dtype is int32; use a floating-point type"):
        train(config, tmp_path, source, dtype="int32")


def test_float64_needs_the_64_bit_mode(config, source, tmp_path):
    with pytest.raises(InputError, match="'jax_enable_x64', True"):
        train(config, tmp_path, source, dtype="float64")


def test_a_batch_that_is_larger_than_the_dataset_is_refused(config, source, tmp_path):
    config.data.batch_size = 13
    with pytest.raises(InputError, match=r"data.batch_size=13 is larger .* use at most 12"):
        train(config, tmp_path / "run", source)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda run: os.mkfifo(run / "metrics.jsonl"),
            r"metrics\.jsonl: it is a named pipe, not a",
        ),
        (lambda run: (run / "metrics.jsonl").mkdir(), r"metrics\.jsonl: it is a directory"),
        (lambda run: (run / ".lock").mkdir(), r"\.lock: it is a directory, not a file"),
        (lambda run: (run / "checkpoints").touch(), "checkpoints is a file; move it away"),
        (lambda run: (run / "SHA256SUMS").touch(), "run is a saved step of a run; use"),
    ],
)
def test_a_work_directory_with_something_else_is_refused(config, source, tmp_path, make, message):
    (tmp_path / "run").mkdir()
    make(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        train(config, tmp_path / "run", source)
