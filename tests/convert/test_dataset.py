"""The classes that checkpoints carry: read as they were saved, refused if they are invalid."""

import json

import numpy as np
import pytest
import safetensors.numpy

from nonlocal_jax import convert
from nonlocal_jax.errors import InputError
from tests.helpers import TINY, random_variables

OWN = {
    "name": "own",
    "classes": ["meadow", "path", "hut"],
    "palette": [[0, 128, 0], [200, 180, 120], [0, 0, 255]],
}
CLASSES = "its classes are not a list whose entries are each a string of 1 to 200 printable"


def write_file(tmp_path, **metadata):
    path = tmp_path / "a.safetensors"
    entries = {key: json.dumps(value) for key, value in metadata.items()}
    safetensors.numpy.save_file({"a": np.zeros(1)}, path, entries)
    return path


def write_step(tmp_path, *, model_config, **metadata):
    """What is read of a step that ``train.Checkpoints`` saves."""
    step = tmp_path / "checkpoints" / "3"
    (step / "variables").mkdir(parents=True)
    (step / "metadata").mkdir()
    text = json.dumps({"config": {"model": model_config}, **metadata})
    (step / "metadata" / "metadata").write_text(text)
    return tmp_path


def test_save_and_read(tmp_path):
    path, variables = tmp_path / "a.safetensors", random_variables(TINY)
    convert.save(path, variables, TINY, dataset=OWN)
    assert convert.read_dataset(path) == OWN
    assert convert.read_model_config(path)["num_classes"] == 3
    convert.save(path, variables, TINY)
    assert convert.read_dataset(path) is None
    path.unlink()
    two = {key: OWN[key][:2] for key in ("name", "classes", "palette")}
    with pytest.raises(InputError, match="it has 2 classes, but the model predicts 3"):
        convert.save(path, variables, TINY, dataset=two)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_file, write_step])
def test_checkpoints_with_and_without_a_dataset(tmp_path, write):
    path = write(tmp_path, model_config={"num_classes": 3}, dataset=OWN | {"version": 2})
    assert convert.read_dataset(path) == OWN
    for older in ("without", "null"):
        (tmp_path / older).mkdir()
        entry = {"dataset": None} if older == "null" else {}
        assert convert.read_dataset(write(tmp_path / older, model_config=TINY, **entry)) is None
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", model_config={"network": "toy"}, dataset=OWN)
    assert convert.read_dataset(other) == OWN


def test_files_of_others_have_no_dataset(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(1)}, path, {"dataset": "imagenet"})
    assert convert.read_dataset(path) is None
    convert.export_torch(tmp_path / "a.pth", random_variables(TINY), TINY)
    assert convert.read_dataset(tmp_path / "a.pth") is None
    with pytest.raises(InputError, match="no checkpoint at"):
        convert.read_dataset(tmp_path / "none.pth")


@pytest.mark.parametrize("write", [write_file, write_step])
@pytest.mark.parametrize(
    ("dataset", "problem"),
    [
        ([OWN], "it is a list, not a mapping"),
        ("own", "it is a str, not a mapping"),
        ({"name": "own", "classes": ["a"]}, "it has no palette"),
        (OWN | {"name": ["own"]}, "its name is not a string of 1 to 200 printable"),
        (OWN | {"classes": "abc"}, CLASSES),
        (OWN | {"classes": ["a", 1, "b"]}, CLASSES),
        (OWN | {"classes": []}, CLASSES),
        (OWN | {"classes": ["a", "\x1b[2J", "b"]}, CLASSES),
        (OWN | {"classes": ["a", "b" * 201, "c"]}, CLASSES),
        (OWN | {"palette": OWN["palette"][:2]}, "its palette is not a list of 3 colors"),
        (OWN | {"palette": [[0, 0, 0], [0, 0], [0, 0, 0]]}, "three integers from 0 to 255"),
        (OWN | {"palette": [[0, 0, 256]] * 3}, "three integers from 0 to 255"),
        (OWN | {"palette": [[0, 0, 0.5]] * 3}, "three integers from 0 to 255"),
        (
            {"name": "many", "classes": ["a"] * 9999, "palette": [[0, 0, 0]] * 9999},
            "it has 9999 classes, but the model predicts 3",
        ),
    ],
)
def test_an_invalid_dataset_is_refused(tmp_path, write, dataset, problem):
    path = write(tmp_path, model_config={"num_classes": 3}, dataset=dataset)
    with pytest.raises(InputError) as error:
        convert.read_dataset(path)
    message = str(error.value)
    assert message.startswith(f"the dataset of {path} is invalid: ")
    assert problem in message
    assert len(message) < 400 + len(str(path))


def test_damaged_metadata_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    metadata = {"model_config": "{}", "dataset": "{"}
    safetensors.numpy.save_file({"a": np.zeros(1)}, path, metadata)
    with pytest.raises(InputError, match=r"a\.safetensors is damaged"):
        convert.read_dataset(path)
    step = write_step(tmp_path, model_config=TINY) / "checkpoints" / "3"
    (step / "metadata" / "metadata").write_text("[]")
    with pytest.raises(InputError, match=r"cannot read the checkpoint .*use another step"):
        convert.read_dataset(step)


def test_no_flipped_bit_changes_a_file(tmp_path):
    """Neither its arrays nor its metadata."""
    path, variables = tmp_path / "a.safetensors", random_variables(TINY)
    convert.save(path, variables, TINY, dataset=OWN)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    header = int.from_bytes(data[:8], "little")
    for place in [*rng.integers(len(data), size=40), *rng.integers(8, header, size=40)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        with pytest.raises(InputError, match="damaged"):
            convert.load(path, TINY)
