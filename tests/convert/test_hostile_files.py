"""Files that are not what they claim: each is refused with one message, at once."""

import json
import os
import pathlib
import pickle
import socket
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from nonlocal_jax import convert
from nonlocal_jax.convert import _torch_file as torch_file
from nonlocal_jax.convert import _unpickle as unpickle
from nonlocal_jax.errors import InputError, listing, printable
from tests.convert import python2
from tests.convert.test_work_directories import write_steps
from tests.fuzz import pickles, zips
from tests.fuzz import safetensors as headers
from tests.fuzz.kinds import cached
from tests.helpers import TINY, random_variables

CONFIG = TINY | {"width": 2, "stage_sizes": (1, 1), "block": "none"}


def refusal(tmp_path, data, name="a.pth", config=CONFIG):
    """The message of the error that loading a file with these bytes raises."""
    path = tmp_path / name
    path.write_bytes(data)
    start = time.process_time()
    with pytest.raises(InputError) as error:
        convert.load(path, config)
    assert time.process_time() - start < 10
    message = str(error.value)
    assert len(message) < 5000
    assert message.replace("\n", "").isprintable()
    return message


# Pickles.

PICKLES, ZIPS = cached(pickles.hostile), cached(zips.hostile)
BOMBS = [name for name in PICKLES if name.startswith("a bomb")]


@pytest.mark.parametrize("name", BOMBS)
def test_a_tuple_of_2_to_the_40_leaves_is_neither_hashed_nor_printed(tmp_path, name):
    refusal(tmp_path, PICKLES[name])


@pytest.mark.parametrize(
    ("depth", "place"),
    [(3_000_000, "key"), (100_000, "key"), (100_000, "name"), (100_000, "weight"), (900, "name")],
)
def test_a_deep_tuple_is_not_walked(tmp_path, depth, place):
    nest = b")" + b"\x85" * depth
    item = nest + b"K\x01" if place != "weight" else pickles.text("a.weight") + nest
    item = b"}" + item + b"s"
    if place != "key":
        item = b"}" + pickles.text("state_dict") + item + b"s"
    message = refusal(tmp_path, b"\x80\x02" + item + b".")
    assert (
        "save only model.state_dict()" if depth > 500_000 else "contains more than tensors"
    ) in message


def test_only_strings_are_keys(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": 1, 2: {3: 4}, (5, 6): 7, "long" * 1000: 8, "b": {9}}, 2))
    content = unpickle.read(path)
    strings = {key: value for key, value in content.items() if isinstance(key, str)}
    assert strings.keys() == {"a", "b"}
    assert len(content) == 3
    assert isinstance(strings["b"], unpickle.Placeholder)


@pytest.mark.parametrize(
    "name",
    [
        *("copied pairs again and again", "encoded text again and again", "slow keys"),
        *("long names again and again", "arrays of text again and again", "a slow memo"),
        *("long arguments again and again", "a long key again and again"),
        *("copied pairs of a tuple again and again", "wide names again and again"),
        "names of names again and again",
    ],
)
def test_work_does_not_grow_faster_than_the_file(tmp_path, name):
    refusal(tmp_path, PICKLES[name])


def test_a_huge_tensor_of_few_bytes_is_not_allocated(tmp_path):
    view = pickles.tensor(shape=b"\x8a\x06\0\0\0\0\0\x01\x85", strides=b"K\0\x85")
    names = ("res2_0_branch2a_bn_s", "pred_w", "nonlocal_conv4_1_out_b", "nonlocal_conv4_1_bn_rm")
    items = b"".join(b"X" + struct.pack("<I", len(n)) + n.encode() + view for n in names)
    data = zips.write(zips.archive(b"\x80\x02}(" + items + b"u.", bytes(96)))
    config = {"network": "video", "num_classes": 2, "width": 2, "stage_sizes": (1, 1, 1, 1)}
    assert "(1099511627776,)" in refusal(tmp_path, data, config=config)


# Zip files.


def test_records_that_overlap_are_refused(tmp_path):
    assert "overlaps" in refusal(tmp_path, ZIPS["overlapping records, big-endian"])
    assert "overlaps" in refusal(tmp_path, ZIPS["nested records"])


def test_a_record_is_checked_and_swapped_once(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(ZIPS["one record for many keys, big-endian"])
    tracemalloc.start()
    start = time.process_time()
    try:
        assert len(unpickle.read(path)) == 300
        assert tracemalloc.get_traced_memory()[1] < 3 * path.stat().st_size
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("two records of one name", "two records archive/data/0"),
        ("two pickles of one name", "two records archive/data.pkl"),
        ("a name with a zero byte", "two records archive/data/0"),
        ("the list twice", "two records"),
        ("an encrypted record", "archive/data/0 is encrypted"),
        ("an encrypted pickle", "archive/data.pkl is encrypted"),
        ("a record beyond the end", "does not end within the file"),
        ("a record without a header", "the record archive/data/0 has no header"),
        ("a record in the list of records", "does not end within the file"),
        ("two types of one storage", "storage 0 has two types"),
    ],
)
def test_ambiguous_zip_files_are_refused(tmp_path, name, reason):
    assert reason in refusal(tmp_path, ZIPS[name])


def test_records_that_are_not_read_may_be_compressed(tmp_path):
    path = tmp_path / "a.pth"
    torch_file.write(path, {"a": np.ones(3, np.float32)})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/code/a.py", "pass\n" * 100)
    np.testing.assert_array_equal(unpickle.read(path)["a"], np.ones(3, np.float32))


# The metadata of .safetensors files.


def with_metadata(**values):
    config = json.loads(json.dumps(CONFIG)) | values.pop("changes", {})
    values = {"model_config": config} | values
    arrays = {"params/a/kernel": np.ones(2, np.float32)}
    metadata = {key: json.dumps(value) for key, value in values.items()}
    return safetensors.numpy.save(arrays, metadata)


@pytest.mark.parametrize("value", [["nonlocal"], {"nonlocal": 1}, None, 1, True])
@pytest.mark.parametrize("option", ["network", "block"])
def test_the_network_and_the_block_are_strings(tmp_path, option, value):
    message = refusal(tmp_path, with_metadata(changes={option: value}), "a.safetensors")
    assert f"a.safetensors is invalid: {option} is " in message


@pytest.mark.parametrize(
    "config",
    [
        *([[1, 2], ["a", 3]], [], "segmentation", 3),
        *({"a": {"b": 1}}, {"a": [[[["b"]]]]}, {"a\n": 1}, {"a": "b" * 10_000}, {"a" * 10_000: 1}),
    ],
)
def test_a_model_config_is_a_flat_mapping_of_plain_values(tmp_path, config):
    data = with_metadata(model_config=config)
    message = refusal(tmp_path, data, "a.safetensors")
    assert "the model config in" in message
    with pytest.raises(InputError, match="the model config in"):
        convert.read_model_config(tmp_path / "a.safetensors")


def test_the_model_config_of_a_work_directory_is_checked_too(tmp_path):
    config = CONFIG | {"network": ["segmentation"]}
    write_steps(tmp_path, lambda _: random_variables(CONFIG), config)
    with pytest.raises(InputError, match="is invalid: network is a list, not a string"):
        convert.load(tmp_path, CONFIG)


@pytest.mark.parametrize("option", [{"network": "mlp"}, {"block": "gated"}])
def test_a_checkpoint_of_an_unknown_network_names_the_difference(tmp_path, option):
    message = refusal(tmp_path, with_metadata(changes=option), "a.safetensors")
    (name, value) = next(iter(option.items()))
    assert f"{name} is {value!r} in the checkpoint" in message


def test_arrays_that_the_model_lacks_are_not_read(tmp_path):
    """The file has a hole of 64 GiB."""
    size = 2**36
    header = {"backbone.a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    encoded = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + size)
    with pytest.raises(InputError, match=r"not in the model:\n  backbone\.a \(68719476736,\)"):
        convert.load(path, CONFIG)


# Values that are not finite.


@pytest.fixture(scope="module")
def diverged():
    """Variables with a NaN and an infinite value."""
    variables = random_variables(CONFIG)
    variables["params"]["decode_head"]["conv_seg"]["bias"][1] = np.nan
    variables["batch_stats"]["backbone"]["layer1_0"]["bn1"]["var"][:] = np.inf
    return variables


def write(kind, directory, variables):
    path = directory / f"a.{kind}"
    if kind == "safetensors":
        convert.save(path, variables, CONFIG)
    elif kind == "pth":
        convert.export_torch(path, variables, CONFIG)
    elif kind == "pkl":
        path.write_bytes(python2.dumps({"blobs": convert.to_torch(variables, CONFIG)}, 2))
    else:
        write_steps(path, lambda _: variables, CONFIG)
    return path


@pytest.mark.parametrize("kind", ["pth", "pkl", "safetensors", "run"])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, diverged, kind):
    path = write(kind, tmp_path, diverged)
    with pytest.raises(InputError) as error:
        convert.load(path, CONFIG)
    message = str(error.value)
    flax = kind in ("safetensors", "run")
    bias = "params/decode_head/conv_seg/bias" if flax else "decode_head.conv_seg.bias"
    assert f"{path} has 2 arrays with values that are NaN" in message
    assert f"\n  {bias}: 1 of 3" in message
    assert ": 2 of 2" in message
    assert "allow_non_finite=True (--allow-non-finite)" in message

    loaded = convert.load(path, CONFIG, allow_non_finite=True)
    bias = loaded["params"]["decode_head"]["conv_seg"]["bias"]
    np.testing.assert_array_equal(bias, diverged["params"]["decode_head"]["conv_seg"]["bias"])


def test_values_that_are_initialized_need_not_be_finite(tmp_path, diverged):
    variables = random_variables(CONFIG)
    variables["params"]["decode_head"]["conv_seg"] = diverged["params"]["decode_head"]["conv_seg"]
    path = write("pth", tmp_path, variables)
    convert.load(path, CONFIG, reinit_head=True)


def test_values_that_float32_cannot_represent_are_refused(tmp_path):
    arrays = {
        k: np.float64(x) for k, x in convert.to_torch(random_variables(CONFIG), CONFIG).items()
    }
    arrays["backbone.layer1.0.bn1.bias"][0] = 1e300
    torch_file.write(tmp_path / "a.pth", arrays)
    with pytest.raises(
        InputError, match=r"too large for .*\n  backbone\.layer1\.0\.bn1\.bias: 1 of"
    ):
        convert.load(tmp_path / "a.pth", CONFIG)


def test_a_block_that_is_not_finite_is_refused(tmp_path):
    from nonlocal_jax.blocks import GlobalContextBlock

    block = GlobalContextBlock(ratio=0.5)
    config = TINY | {"block": "global_context", "block_ratio": 0.5}
    arrays = convert.to_torch(random_variables(config), config)
    arrays["decode_head.gc_block.conv_mask.bias"][:] = np.nan
    torch_file.write(tmp_path / "a.pth", arrays)
    load = convert.load_block
    with pytest.raises(InputError, match=r"conv_mask\.bias: 1 of 1"):
        load(tmp_path / "a.pth", block, "decode_head.gc_block.")
    load(tmp_path / "a.pth", block, "decode_head.gc_block.", allow_non_finite=True)


# Other files, and what is no file.


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors"])
@pytest.mark.parametrize(
    ("data", "what", "advice"),
    [
        (b"\n<!DOCTYPE html>\n<html lang='en'>", "an HTML page", "open the address in a browser"),
        (b"<html><head>", "an HTML page", "download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid x", "a Git LFS pointer", "git lfs pull"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "XML", "download the file itself"),
        (b'{"error": "not found"}', "JSON text", "download the file itself"),
        (b"\x1f\x8b\x08\0" + bytes(20), "compressed by gzip", "gunzip"),
        (b"a.pth" + bytes(252) + b"ustar" + bytes(250), "a tar archive", "tar"),
    ],
)
def test_other_files_are_recognized(tmp_path, suffix, data, what, advice):
    message = refusal(tmp_path, data, f"a.{suffix}")
    assert f"a.{suffix} is {what}" in message
    assert advice in message


def test_the_suffix_of_the_other_format_is_recognized(tmp_path):
    pth, tensors = zips.write(zips.archive(b"\x80\x02}.")), with_metadata()
    assert "use the suffix .pth" in refusal(tmp_path, pth, "a.safetensors")
    assert "use the suffix .pth" in refusal(tmp_path, pickle.dumps({}, 2), "a.safetensors")
    assert "use the suffix .safetensors" in refusal(tmp_path, tensors)


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors"])
@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device"])
def test_a_pipe_is_not_opened(tmp_path, suffix, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    path = pathlib.Path(f"a.{suffix}")
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "a socket":
            listener.bind(str(path))
        for read in (lambda p: convert.load(p, CONFIG), convert.read_model_config, unpickle.read):
            with pytest.raises(InputError, match=f"it is {kind}, not a file; use the path of a"):
                read(path)


# Names that are printed.


def test_text_from_a_file_is_escaped_and_cut():
    assert printable("layer1.bn1") == "layer1.bn1"
    assert printable("a\x1b[31m\n\u202e\x85\ud800b") == r"a\x1b[31m\n\u202e\x85\ud800b"
    assert printable("größe 大小") == "größe 大小"
    assert printable("a" * 1000 + "b") == "a" * 100 + " ... " + "a" * 99 + "b"
    assert listing(["a\nb", "c"]) == "\n  a\\nb\n  c"


STRANGE = "a\x1b[31m\u202e\nb"


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors"])
def test_names_in_files_are_escaped(tmp_path, suffix):
    arrays = {f"backbone.{STRANGE}": np.ones(2, np.float32)}
    if suffix == "safetensors":
        data = safetensors.numpy.save(arrays)
    elif suffix == "pkl":
        data = pickle.dumps(arrays, 2)
    else:
        torch_file.write(tmp_path / "a.pth", arrays)
        data = (tmp_path / "a.pth").read_bytes()
    assert r"\x1b[31m\u202e\nb" in refusal(tmp_path, data, f"a.{suffix}")


def test_names_of_classes_and_options_are_escaped(tmp_path):
    data = b"\x80\x02}" + pickles.text("a.weight") + pickles.name("x", "y\x1b[31m") + b"s."
    assert r"x.y\x1b[31m" in refusal(tmp_path, data)
    data = zips.write([zips.Record(f"{STRANGE}/data.pkl", b"\x80\x02}.", checksum=1)])
    assert r"the checksum of a\x1b[31m" in refusal(tmp_path, data)
    data = with_metadata(changes={"stem": STRANGE})
    assert r"\x1b[31m\u202e\nb" in refusal(tmp_path, data, "a.safetensors")


def test_long_and_many_names_are_refused(tmp_path):
    arrays = {"a" * 501: np.ones(1, np.float32)}
    data = safetensors.numpy.save(arrays)
    assert "names of up to 501 characters" in refusal(tmp_path, data, "a.safetensors")
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    data = headers._file({str(i): entry for i in range(20_001)}, b"")
    assert "has 20,001 arrays" in refusal(tmp_path, data, "a.safetensors")
