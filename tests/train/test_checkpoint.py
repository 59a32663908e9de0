import contextlib
import errno
import itertools
import os
import re
import shutil
import subprocess
import time
import types
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from configs import segmentation
from nonlocal_jax import convert, distributed
from nonlocal_jax.convert import _checksums
from nonlocal_jax.convert._orbax import finished_steps
from nonlocal_jax.errors import InputError, disk_reason
from nonlocal_jax.sharding import Shardings, make_mesh
from nonlocal_jax.train import Checkpoints, checkpoint, create_experiment, create_state
from nonlocal_jax.train.state import abstract_state
from tests.helpers import bucket_in_memory, one_device


def _config():
    config = segmentation.get_config("demo_nonlocal")
    config.model.update(width=4, head_channels=8, auxiliary_channels=8)
    config.data.crop = (16, 16)
    return config


@pytest.fixture(scope="module")
def state():
    return create_state(create_experiment(_config()), one_device())


@pytest.fixture(scope="module")
def workdir(state, tmp_path_factory):
    """A work directory with steps 2, 3 and 4. Step 1 was removed, and step 0 is never saved."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir, _config(), "fingerprint") as checkpoints:
        for step in range(5):
            checkpoints.save(state.replace(step=state.step + step))
    return workdir


def _names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def _restore(workdir, config, fingerprint="fingerprint"):
    target = abstract_state(create_experiment(config), one_device())
    with Checkpoints(workdir, config, fingerprint) as checkpoints:
        return checkpoints.restore(target)


def _assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_the_last_states_come_back_bit_for_bit(workdir, state):
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "3", "4"]
    restored = _restore(workdir, _config())
    assert int(restored.step) == 4
    _assert_equal(restored, state.replace(step=state.step + 4))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(restored))


def test_the_best_state_is_kept_too(state, tmp_path):
    """The scores are known only after the state is saved, and are read again in the second part."""
    scores = {1: 0.5, 2: 0.9, 3: 0.8, 7: 0.9, 9: 1.0}
    for steps in (range(1, 6), range(6, 9)):
        with Checkpoints(tmp_path, _config(), "fingerprint") as checkpoints:
            for step in steps:
                known = {s: score for s, score in scores.items() if s < step}
                checkpoints.save(state.replace(step=state.step + step), known)
        assert _names(tmp_path) == ["2", *map(str, steps[-3:])]


@pytest.fixture
def with_best(workdir, tmp_path):
    """A work directory that kept step 1 as the best one beside steps 2, 3 and 4."""
    shutil.copytree(workdir, tmp_path / "run")
    shutil.copytree(workdir / "checkpoints" / "2", tmp_path / "run" / "checkpoints" / "1")
    return tmp_path / "run"


@pytest.mark.parametrize("ends", ["refused", "stopped", "finished"])
def test_a_second_start_without_a_new_state_keeps_the_best(with_best, state, ends):
    refused = pytest.raises(InputError) if ends == "refused" else contextlib.nullcontext()
    with refused, Checkpoints(with_best, _config(), "fingerprint") as checkpoints:
        if ends == "finished":
            checkpoints.save(state.replace(step=state.step + 4), {1: 0.9, 3: 0.8})
        if ends == "refused":
            raise InputError("it belongs to another run")
    assert _names(with_best) == ["1", "2", "3", "4"]


def test_a_last_state_that_is_the_best_is_the_only_best(with_best, state):
    """The run evaluates it after it is saved."""
    with Checkpoints(with_best, _config(), "fingerprint") as checkpoints:
        checkpoints.save(state.replace(step=state.step + 4), {1: 0.8, 4: 0.9})
    assert _names(with_best) == ["2", "3", "4"]


def test_a_state_that_is_half_removed_does_not_count(workdir, state, tmp_path, monkeypatch):
    def be_killed(step, **_):
        (step / "SHA256SUMS").unlink()

    shutil.copytree(workdir, tmp_path / "run")
    with monkeypatch.context() as patch:
        with Checkpoints(tmp_path / "run", _config(), "fingerprint") as checkpoints:
            patch.setattr(type(checkpoints.directory), "rmtree", be_killed)
            checkpoints.save(state.replace(step=state.step + 5))
        steps = finished_steps(checkpoints.directory)
    assert [step.name for step in steps] == ["3", "4", "5"]
    assert len(_names(tmp_path / "run")) == 4
    with Checkpoints(tmp_path / "run", _config(), "fingerprint"):
        assert _names(tmp_path / "run") == ["3", "4", "5"]


# The kernels are split over the axis "data".
_RULES = ((r"layer.*/kernel$", jax.P(None, None, None, "data")),)


@pytest.mark.parametrize(("devices", "rules"), [(1, ()), (4, ()), (8, ()), (4, _RULES)])
def test_a_state_comes_back_on_other_devices_and_shardings(sharded_workdir, state, devices, rules):
    shardings = Shardings(make_mesh(jax.devices()[:devices]), rules)
    target = abstract_state(create_experiment(_config()), shardings)
    with Checkpoints(sharded_workdir, _config(), "fingerprint") as checkpoints:
        restored = checkpoints.restore(target)
    _assert_equal(restored, state.replace(step=state.step + 1))
    for leaf, wanted in zip(*map(jax.tree.leaves, (restored, target)), strict=True):
        assert leaf.sharding == wanted.sharding


@pytest.fixture(scope="module")
def sharded_workdir(state, tmp_path_factory):
    """A work directory with a state of eight devices. Four of them split the kernels."""
    workdir = tmp_path_factory.mktemp("sharded")
    sharded = Shardings(make_mesh(context=2), _RULES)
    with Checkpoints(workdir, _config(), "fingerprint") as checkpoints:
        checkpoints.save(sharded.place(state.replace(step=state.step + 1)))
    return workdir


def test_nothing_to_restore(tmp_path):
    assert _restore(tmp_path, _config()) is None


def test_an_uncommitted_save_does_not_count(workdir, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(workdir / "checkpoints", checkpoints)
    (checkpoints / "4").rename(checkpoints / "4.orbax-checkpoint-tmp")
    (checkpoints / "3").rename(checkpoints / "elsewhere")
    assert int(_restore(tmp_path / "run", _config()).step) == 2
    assert not (checkpoints / "4.orbax-checkpoint-tmp").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, "seed is 0 in the checkpoint, 7 in the config"),
        ({"steps": 500}, "steps is 600 in the checkpoint, 500 in the config"),
        ({"name": "other"}, "name is 'demo_nonlocal' in the checkpoint, 'other' in the config"),
        ({"model.width": 8}, "model.width is 4 in the checkpoint, 8 in the config"),
        ({"data.batch_size": 8}, "data.batch_size is 32 in the checkpoint, 8 in the config"),
        (
            {"optimizer.learning_rate": 0.1},
            "learning_rate is 0.4 in the checkpoint, 0.1 in the config",
        ),
    ],
)
def test_another_run_is_refused(workdir, change, message):
    config = _config()
    config.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=f"belongs to another run.*\n  .*{message}"):
        _restore(workdir, config)


def test_other_data_are_refused(workdir):
    with pytest.raises(InputError, match="the training data are not those of the checkpoint"):
        _restore(workdir, _config(), "x")


def test_another_type_is_refused(workdir):
    target = abstract_state(create_experiment(_config()), one_device(), "bfloat16")
    message = "dtype is float32 in the checkpoint, bfloat16 in this call"
    with (
        Checkpoints(workdir, _config(), "fingerprint") as checkpoints,
        pytest.raises(InputError, match=message),
    ):
        checkpoints.restore(target)


def test_what_leaves_the_parameters_alone_may_change(workdir):
    config = _config()
    config.train.log_every = 1
    config.evaluation.flip = False
    config.recipe = None
    assert int(_restore(workdir, config).step) == 4


def _flip(path, rng):
    """Flips one bit of a file."""
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def test_no_flipped_bit_changes_the_numbers(workdir, state, tmp_path):
    """Flips that remain unnoticed are in files of Orbax whose contents do not matter."""
    rng = np.random.default_rng(0)
    files = (
        p for item in ("variables", "metadata") for p in workdir.glob(f"checkpoints/4/{item}/**/*")
    )
    names = [p.relative_to(workdir) for p in files if p.is_file()]
    assert len(names) > 10
    noticed = []
    for number in range(40):
        run = tmp_path / str(number)
        shutil.copytree(workdir / "checkpoints" / "4", run / "checkpoints" / "4")
        _flip(run / names[rng.integers(len(names))], rng)
        try:
            found = convert.load(run / "checkpoints" / "4", _config().model)
        except InputError as error:
            noticed.append(str(error))
        else:
            _assert_equal(found, state.variables)
    assert len(noticed) > 30
    assert all(re.search(r"4 is damaged \(.*\); use another step", text) for text in noticed)


@pytest.mark.parametrize("file", ["variables/d/*", "progress/d/*", "metadata/metadata", "gone"])
def test_a_run_goes_on_before_a_damaged_state(workdir, state, tmp_path, caplog, file):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    step = run / "checkpoints" / "4"
    if file == "gone":
        shutil.rmtree(step / "variables")
    else:
        _flip(next(step.glob(file)), np.random.default_rng(0))
    # Loading changes nothing in the directory. It does not read the state of the optimizer.
    _assert_equal(convert.load(run, _config().model), state.variables)
    if file.startswith("progress"):
        assert not caplog.messages
    else:
        assert re.search(rf"{step} is damaged \(.*\); using 3", caplog.messages[-1])
    assert step.exists()
    assert int(_restore(run, _config()).step) == 3
    assert sorted(path.name for path in step.parent.iterdir()) == ["2", "3", "4.damaged"]
    assert re.search(rf"{step} is damaged \(.*\); it is now 4\.damaged", caplog.messages[-1])
    assert not any("orbax" in message.lower() for message in caplog.messages)


def test_a_run_whose_states_are_all_damaged_is_refused_and_unchanged(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    names = ("2", "3", "4")
    for name in names:
        (tmp_path / "run" / "checkpoints" / name / "variables" / "_METADATA").write_text("{")
    for load in (
        lambda: _restore(tmp_path / "run", _config()),
        lambda: convert.load(tmp_path / "run", _config().model),
    ):
        with pytest.raises(
            InputError, match=r"all checkpoints are damaged; use another(.*\n.*){3}"
        ):
            load()
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [*names]


def test_states_without_checksums_are_read(workdir, state, tmp_path):
    """Early versions wrote none."""
    shutil.copytree(workdir, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "4"
    (step / "SHA256SUMS").unlink()
    _assert_equal(convert.load(tmp_path / "run", _config().model), state.variables)
    assert int(_restore(tmp_path / "run", _config()).step) == 4
    (step / "variables" / "_METADATA").write_text("{")
    message = f"cannot read the checkpoint {step}: it is damaged, or from another version of Orbax"
    with pytest.raises(
        InputError, match=rf"{message} \(.*Error: .+\); move it out of the directory to resume"
    ):
        _restore(tmp_path / "run", _config())
    with pytest.raises(InputError, match=rf"{message} \(.*Error: .+\); use another step"):
        convert.load(step, _config().model)


@pytest.mark.parametrize(
    ("handler", "read"),
    [
        (ocp.StandardCheckpointHandler, lambda path: _restore(path, _config())),
        (ocp.PyTreeCheckpointHandler, lambda path: convert.load(path, _config().model)),
    ],
    ids=["restore", "load"],
)
def test_a_full_memory_is_no_damage(workdir, monkeypatch, handler, read):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(handler, "restore", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
        read(workdir)


def _error(**links):
    error = ValueError("the save failed")
    for name, value in links.items():
        setattr(error, name, value)
    return error


_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (_FULL, _FULL.strerror),
        (ValueError(f"RESOURCE_EXHAUSTED: a file\nfailed: {_FULL.strerror} [28]"), _FULL.strerror),
        (_error(__cause__=_FULL), _FULL.strerror),
        (_error(__context__=_FULL), _FULL.strerror),
        (_error(__context__=_FULL, __cause__=None), None),  # "from None"
        (_error(__context__=_FULL, __cause__=KeyError("b")), None),
        (KeyError("No such file or directory"), None),
        (TypeError("Permission denied"), None),
        (None, None),
    ],
)
def test_the_disk_is_named_only_if_it_is_the_reason(error, reason):
    assert disk_reason(error) == reason


def test_the_checksums_are_those_of_a_known_command(workdir):
    command = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    subprocess.run(command, cwd=workdir / "checkpoints" / "4", check=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sums: sums + b"0" * 64 + b"  /dev/zero\n", "'/dev/zero' is missing"),
        (lambda sums: sums + b"0" * 64 + b"  a\x00b\n", r"'a\\x00b' is missing"),
        (lambda sums: sums[: len(sums) // 2], "is missing|has no '"),
        (lambda sums: b"".join(sums.splitlines(True)[:-1]), "SHA256SUMS has no '"),
        (lambda sums: b"", "SHA256SUMS has no '"),
    ],
    ids=["device", "NUL", "half", "a line less", "empty"],
)
def test_checksums_that_do_not_list_the_files_are_damage(workdir, tmp_path, change, message):
    shutil.copytree(workdir / "checkpoints" / "4", tmp_path / "4")
    sums = tmp_path / "4" / "SHA256SUMS"
    sums.write_bytes(change(sums.read_bytes()))
    with pytest.raises(InputError, match=rf"4 is damaged \(.*({message})"):
        convert.read_dataset(tmp_path / "4")


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ESTALE, errno.EACCES])
def test_an_error_that_passes_is_no_damage(workdir, tmp_path, monkeypatch, code):
    def fail(path, *, sync=False):
        raise OSError(code, os.strerror(code), str(path))

    shutil.copytree(workdir, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(_checksums, "_checksum", fail)
        with pytest.raises(InputError, match=f"cannot read .*/4/.*: {os.strerror(code)}; run the"):
            _restore(tmp_path / "run", _config())
    assert int(_restore(tmp_path / "run", _config()).step) == 4


@pytest.mark.parametrize(
    ("read", "items"),
    [
        (convert.read_dataset, {"metadata"}),
        (lambda path: convert.load(path, _config().model), {"variables", "metadata"}),
        (lambda path: _restore(path, _config()), {"variables", "metadata", "progress"}),
    ],
    ids=["read_dataset", "load", "restore"],
)
def test_only_what_is_read_is_verified(workdir, monkeypatch, read, items):
    verified, checksum = set(), _checksums._checksum

    def count(path, *, sync=False):
        verified.add(path.relative_to(workdir / "checkpoints" / "4").parts[0])
        return checksum(path, sync=sync)

    monkeypatch.setattr(_checksums, "_checksum", count)
    read(workdir)
    assert verified == items


@pytest.mark.parametrize("seconds", [24 * 3600, -3600])
def test_a_clock_that_jumps_does_not_abort_a_save(state, tmp_path, monkeypatch, seconds):
    now, jumps = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: now() + seconds * next(jumps))
    with Checkpoints(tmp_path, _config(), "fingerprint") as checkpoints:
        for step in (1, 2):
            checkpoints.save(state.replace(step=state.step + step))
    assert _names(tmp_path) == ["1", "2"]


def test_a_full_disk_is_one_error_and_keeps_the_states_before(
    workdir, state, tmp_path, monkeypatch
):
    def fail(directory):
        raise ValueError("RESOURCE_EXHAUSTED: 1 file\nfailed: No space left on device [28]")

    shutil.copytree(workdir, tmp_path / "run")
    message = r"cannot save a checkpoint to \S*: No space left on device; the checkpoints before it"
    with monkeypatch.context() as patch:
        patch.setattr(_checksums, "write", fail)
        with (
            pytest.raises(InputError, match=message) as error,
            Checkpoints(tmp_path / "run", _config(), "fingerprint") as checkpoints,
        ):
            checkpoints.save(state.replace(step=state.step + 5))
    assert "\n" not in str(error.value)
    assert int(_restore(tmp_path / "run", _config()).step) == 4


@pytest.mark.parametrize("first", [KeyboardInterrupt, ValueError("the loss is nan"), None])
def test_a_failed_save_hides_no_error_and_is_said_once(
    workdir, state, tmp_path, monkeypatch, caplog, first
):
    def fail(directory):
        raise _FULL

    def run():
        with Checkpoints(tmp_path / "run", _config(), "fingerprint") as checkpoints:
            checkpoints.save(state.replace(step=state.step + 5))
            if first is not None:
                raise first
            checkpoints.save(state.replace(step=state.step + 6))  # waits for the save before

    shutil.copytree(workdir, tmp_path / "run")
    monkeypatch.setattr(_checksums, "write", fail)
    expected = first or InputError
    with pytest.raises(expected if isinstance(expected, type) else type(expected)) as error:
        run()
    warnings = [text for text in caplog.messages if _FULL.strerror in text]
    if first is None:
        assert _FULL.strerror in str(error.value)
        assert warnings == []
    else:
        (warning,) = warnings
        assert warning.startswith("the last save failed too: cannot save a checkpoint to ")


def test_all_processes_fail_if_the_first_one_cannot_remove_a_state(workdir, state, tmp_path):
    """Here another one hears of it."""
    shutil.copytree(workdir, tmp_path / "run")
    refuse = mock.Mock(side_effect=InputError("it cannot"))
    with Checkpoints(tmp_path / "run", _config(), "fingerprint") as checkpoints:
        checkpoints.save(state.replace(step=state.step + 5), {})
        with (
            mock.patch.object(distributed, "from_first", refuse),
            pytest.raises(InputError, match="it cannot"),
        ):
            checkpoints.save(state.replace(step=state.step + 6), {})


def test_a_state_that_cannot_be_removed_is_one_error(workdir, state, tmp_path, monkeypatch):
    def fail(step):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(step))

    shutil.copytree(workdir, tmp_path / "run")
    monkeypatch.setattr(checkpoint, "_remove", fail)
    with (
        pytest.raises(InputError, match=r"^cannot save a checkpoint to \S*: Permission denied; "),
        Checkpoints(tmp_path / "run", _config(), "fingerprint") as checkpoints,
    ):
        checkpoints.save(state.replace(step=state.step + 5), {})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads
def test_a_write_of_orbax_that_fails_is_one_error(tmp_path):
    """It fails in a thread of its own, here because of the limit of the size of a file."""
    resource = pytest.importorskip("resource")
    array = jax.numpy.asarray(np.random.default_rng(0).standard_normal(1_000_000, np.float32))
    parts = {"variables": {"x": array}, "progress": {"x": array}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def run():
        with Checkpoints(tmp_path, _config(), "fingerprint") as checkpoints:
            checkpoints.save(types.SimpleNamespace(step=1, **parts))
            checkpoints._checkpointer.wait_until_finished()
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
            try:
                checkpoints.save(types.SimpleNamespace(step=2, **parts))
                while True:
                    checkpoints.check()
                    time.sleep(0.01)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with pytest.raises(InputError, match=r"cannot save a checkpoint to \S*: File too large; the "):
        run()
    assert [step.name for step in finished_steps(tmp_path / "checkpoints")] == ["1"]


def test_a_failed_save_is_reported_before_the_next_one(workdir, state, tmp_path, monkeypatch):
    def fail(directory):
        raise _FULL

    shutil.copytree(workdir, tmp_path / "run")
    monkeypatch.setattr(_checksums, "write", fail)

    def run():
        with Checkpoints(tmp_path / "run", _config(), "fingerprint") as checkpoints:
            checkpoints.save(state.replace(step=state.step + 5))
            while True:
                checkpoints.check()
                time.sleep(0.01)

    with pytest.raises(InputError, match=_FULL.strerror):
        run()
    monkeypatch.undo()
    assert int(_restore(tmp_path / "run", _config()).step) == 4


def test_a_directory_that_cannot_be_made_ends_the_run_at_once(state, tmp_path):
    def run():
        with Checkpoints(tmp_path, _config(), "fingerprint") as checkpoints:
            checkpoints.save(state.replace(step=state.step + 1))
            while not (tmp_path / "checkpoints" / "1").exists():
                time.sleep(0.01)
            (tmp_path / "checkpoints").rename(tmp_path / "aside")
            (tmp_path / "checkpoints").touch()
            checkpoints.save(state.replace(step=state.step + 2))

    begin = time.monotonic()
    with pytest.raises(InputError, match=r"cannot save a checkpoint to .*: Not a directory; the"):
        run()
    assert time.monotonic() - begin < 10
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "aside").rename(tmp_path / "checkpoints")
    assert int(_restore(tmp_path, _config()).step) == 1


def test_in_a_bucket_an_object_commits_a_save(state, tmp_path, monkeypatch):
    """Not a new name of the directory."""
    monkeypatch.setattr(checkpoint, "is_bucket", lambda _: True)
    with Checkpoints(tmp_path, _config(), "fingerprint") as checkpoints:
        checkpoints.save(state.replace(step=state.step + 1))
    assert checkpoints._checkpointer._temporary_path_class is checkpoint._Marked
    assert (tmp_path / "checkpoints" / "1" / "commit_success.txt").exists()
    assert int(_restore(tmp_path, _config()).step) == 1


def test_the_checksums_of_a_bucket_are_those_of_its_objects(workdir, monkeypatch):
    objects = bucket_in_memory(monkeypatch)
    step = epath.Path("gs://bucket/run/checkpoints/4")
    for path in (workdir / "checkpoints" / "4").rglob("*"):
        if path.is_file():
            (step / path.relative_to(workdir / "checkpoints" / "4")).write_bytes(path.read_bytes())
    (step / "SHA256SUMS").unlink()
    _checksums.write(step)
    expected = (workdir / "checkpoints" / "4" / "SHA256SUMS").read_bytes()
    assert (step / "SHA256SUMS").read_bytes() == expected
    assert _checksums.find_damage(step) is None
    (step / "commit_success.txt").write_text("")
    assert finished_steps(step.parent) == [step]
    assert convert.read_dataset("gs://bucket/run") is None
    with monkeypatch.context() as patch:  # killed while the state is removed
        patch.setattr(type(step), "rmtree", lambda path: None)
        checkpoint._remove(step)
    assert finished_steps(step.parent) == []
    assert [partial.get() for partial in ocp.utils.tmp_checkpoints(step.parent)] == [step]
    (step / "commit_success.txt").write_text("")
    del objects["/bucket/run/checkpoints/4/metadata/metadata"]
    with pytest.raises(InputError, match="all checkpoints are damaged"):
        convert.read_dataset("gs://bucket/run")
    with pytest.raises(InputError, match="there is no work directory and no saved step at gs://b"):
        convert.read_dataset("gs://bucket/other.safetensors")
