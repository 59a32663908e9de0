"""The command that converts checkpoints, run as a user runs it."""

import hashlib

import jax
import numpy as np
import pytest

from configs import segmentation
from nonlocal_jax import convert, data
from nonlocal_jax.convert import names
from tests.helpers import random_variables

CHANGES = {"width": 4, "head_channels": 8, "auxiliary_channels": 4}
CONFIG = "--config=configs/segmentation.py:demo_dnl"
CHANGED = [CONFIG, *(f"--config.model.{name}={value}" for name, value in CHANGES.items())]
MODEL = {**segmentation.get_config("demo_dnl").model, **CHANGES}


@pytest.fixture(scope="module")
def variables():
    return random_variables(MODEL)


@pytest.fixture
def pth(tmp_path, variables):
    path = tmp_path / "dnl.pth"
    convert.export_torch(path, variables, MODEL)
    return path


def assert_equal(loaded, variables):
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_there_and_back(command, tmp_path, pth, variables):
    imported, exported = tmp_path / "dnl.safetensors", tmp_path / "again.pth"
    status, out, err = command("convert", *CHANGED, f"--source={pth}", f"--output={imported}")
    assert (status, err) == (0, "")
    params = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert out == f"wrote {imported}: {len(names.leaves(MODEL))} arrays, {params:,} parameters\n"
    assert_equal(convert.load(imported, MODEL), variables)
    # A PyTorch file does not say it. The dataset of the config is the best guess.
    assert convert.read_dataset(imported) == data.get_dataset("digits_flag").to_json()

    arguments = ("--reverse", f"--source={imported}", f"--output={exported}")
    assert command("convert", *CHANGED, *arguments)[0] == 0
    assert exported.read_bytes() == pth.read_bytes()


def test_reinit_head(command, caplog, tmp_path, pth, variables):
    output = tmp_path / "dnl.safetensors"
    arguments = (*CHANGED, "--config.model.num_classes=7", f"--source={pth}", f"--output={output}")
    status, _, err = command("convert", *arguments)
    assert status == 2
    assert "--reinit-head" in err
    assert command("convert", *arguments, "--reinit-head")[0] == 0
    assert "decode_head/conv_seg" in caplog.text
    assert convert.read_dataset(output) is None
    loaded = convert.load(output, MODEL | {"num_classes": 7})
    assert loaded["params"]["decode_head"]["conv_seg"]["kernel"].shape == (8, 7)
    assert_equal(loaded["params"]["backbone"], variables["params"]["backbone"])


def test_new_blocks(command, caplog, tmp_path):
    config = {**segmentation.get_config("demo_fcn").model, **CHANGES}
    output = tmp_path / "dnl.safetensors"
    old = random_variables(config)
    convert.export_torch(tmp_path / "fcn.pth", old, config)
    arguments = (*CHANGED, f"--source={tmp_path / 'fcn.pth'}", f"--output={output}")
    status, _, err = command("convert", *arguments)
    assert status == 2
    assert "(--new-blocks of experiments.train and experiments.convert)" in err
    assert not output.exists()
    assert command("convert", *arguments, "--new-blocks")[0] == 0
    assert caplog.text.endswith("fcn.pth:\n  decode_head/block\n")
    loaded = convert.load(output, MODEL)
    assert_equal(loaded["params"]["backbone"], old["params"]["backbone"])
    # The data is the same.
    assert convert.read_dataset(output) == data.get_dataset("digits_flag").to_json()


@pytest.mark.parametrize("name", ["own", "cityscapes"])
def test_a_pytorch_file_of_other_data_has_no_classes(command, tmp_path, pth, name):
    output = tmp_path / "dnl.safetensors"
    arguments = (f"--config.data.name={name}", f"--source={pth}", f"--output={output}")
    assert command("convert", *CHANGED, *arguments)[0] == 0
    assert convert.read_dataset(output) is None


def test_the_hash_in_a_name_is_compared(command, tmp_path, pth, caplog):
    content = pth.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:8]
    for name, expected in ((digest, ""), ("01234567", f"its SHA-256 begins with {digest}")):
        path = tmp_path / f"dnl_demo_20200605_003206-{name}.pth"
        path.write_bytes(content)
        output = tmp_path / "out.safetensors"
        caplog.clear()
        assert command("convert", *CHANGED, f"--source={path}", f"--output={output}")[0] == 0
        assert expected in caplog.text
        assert ("may be damaged" in caplog.text) == bool(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "none.pth"}, "none.pth; use a work directory"),
        ({"source": "."}, "no checkpoint in the directory"),
        ({"source": "truncated.pth"}, "truncated.pth is damaged or not a PyTorch checkpoint"),
        ({"output": "none/out.safetensors"}, "cannot write"),
        ({"output": "out.pth"}, "use a path that ends in .safetensors"),
        ({"output": "out.safetensors", "reverse": True}, "use a path that ends in .pth"),
        ({"source": "truncated.pth", "output": "out.pth", "reverse": True}, "is damaged"),
        ({"output": None}, "--output"),
        (
            {"config": "configs/segmentation.py:demo_gc"},
            "'disentangled_nonlocal' in the checkpoint",
        ),
    ],
)
def test_mistakes_end_in_one_message(command, tmp_path, pth, changes, message):
    (tmp_path / "truncated.pth").write_bytes(pth.read_bytes()[:-100])
    options = {
        "config": CONFIG.partition("=")[2],
        **{f"config.model.{name}": value for name, value in CHANGES.items()},
        "source": pth.name,
        "output": "out.safetensors",
    } | changes
    for option in ("source", "output"):
        if options[option] is not None:
            options[option] = tmp_path / options[option]
    before = set(tmp_path.iterdir())
    status, out, err = command(
        "convert",
        *(f"--{k}" if v is True else f"--{k}={v}" for k, v in options.items() if v is not None),
    )
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert message in err
    assert "Traceback" not in err
    assert set(tmp_path.iterdir()) == before
