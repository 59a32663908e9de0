"""The restricted unpickler: it reads what PyTorch writes and runs no code."""

import collections
import io
import os
import pathlib
import pickle
import random
import struct
import subprocess
import zipfile

import ml_dtypes
import numpy as np
import pytest

from nonlocal_jax.convert import _torch_file as torch_file
from nonlocal_jax.convert import _unpickle as unpickle
from nonlocal_jax.errors import InputError

# Written by the real PyTorch: golden/make.py.
GOLDEN = pathlib.Path(__file__).with_name("golden")
FORMATS = ("zip", "legacy")

ARANGE = np.arange(24, dtype=np.float32)
EXPECTED = {
    "float32": ARANGE.reshape(2, 3, 4),
    "transposed": ARANGE.reshape(4, 6).T,
    "slice": ARANGE[5:20:3],
    "tied": ARANGE.reshape(2, 3, 4),
    "expanded": np.full(3, 7, np.float32),
    "parameter": ARANGE[:6],
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(7),
    "float64": np.array([0, 1, 3], np.float64),
    "float16": np.array([0, 1, 3], np.float16),
    "bfloat16": np.array([0, 1, 3], ml_dtypes.bfloat16),
    "int64": np.array([0, 1, 3], np.int64),
    "int32": np.array([0, 1, 3], np.int32),
    "int16": np.array([0, 1, 3], np.int16),
    "int8": np.array([0, 1, 3], np.int8),
    "uint8": np.array([0, 1, 3], np.uint8),
    "bool": np.array([False, True, True]),
}


def assert_same(state_dict, expected):
    assert list(state_dict) == list(expected)
    for name, array in expected.items():
        assert state_dict[name].dtype == array.dtype, name
        np.testing.assert_array_equal(state_dict[name], array, err_msg=name)


def rewrite(path, source, change):
    """Copies a zip file with ``change(name, data)`` as the data of its records."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(zipfile.ZipInfo(name), change(name, old.read(name)))
    return path


@pytest.mark.parametrize("format", FORMATS)
def test_reads_what_pytorch_wrote(format):
    content = unpickle.read(GOLDEN / f"{format}.pth")
    assert_same(content["state_dict"], EXPECTED)
    assert content["meta"]["CLASSES"] == ("road", "sidewalk")


@pytest.mark.parametrize("format", FORMATS)
def test_foreign_classes_are_not_imported(format):
    meta = unpickle.read(GOLDEN / f"{format}.pth")["meta"]
    foreign = {k: v.name for k, v in meta.items() if isinstance(v, unpickle.Placeholder)}
    assert foreign["config"] == "mmcv_utils_config.ConfigDict"
    assert foreign["time"] == "datetime.datetime"
    assert {"counts", "best", "path", "size", "device"} <= foreign.keys()


def test_reads_what_we_write(tmp_path):
    path = tmp_path / "ours.pth"
    content = {"meta": {"a": [1, "b", None]}, "state_dict": dict(EXPECTED)}
    torch_file.write(path, content)
    again = unpickle.read(path)
    assert again["meta"] == content["meta"]
    assert_same(again["state_dict"], EXPECTED)


def test_big_endian(tmp_path):
    def swap(name, data):
        if name.endswith("/byteorder"):
            return b"big"
        if "/data/" in name:
            return np.frombuffer(data, np.float32).byteswap().tobytes()
        return data

    torch_file.write(tmp_path / "little.pth", {"a": ARANGE})
    path = rewrite(tmp_path / "big.pth", tmp_path / "little.pth", swap)
    assert_same(unpickle.read(path), {"a": ARANGE})


class Evil:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def malicious(marker):
    """Pickles that make the file ``marker`` when they are read by ``pickle``."""
    touch = f"touch {marker}"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.dumps({"a": Evil(os.system, touch)}, protocol)
        yield pickle.dumps(
            [Evil(eval, f"__import__('pathlib').Path({str(marker)!r}).touch()")], protocol
        )
        yield pickle.dumps({Evil(subprocess.check_call, ["touch", str(marker)])}, protocol)
    text = touch.encode()
    yield b"(S'%s'\nios\nsystem\n." % text  # INST
    yield b"(cos\nsystem\nS'%s'\no." % text  # OBJ
    # os.system by way of getattr and a module
    yield (
        b"\x80\x02c__builtin__\ngetattr\nc__builtin__\n__import__\nX\x02\x00\x00\x00os\x85R"
        b"X\x06\x00\x00\x00system\x86RX" + struct.pack("<I", len(text)) + text + b"\x85R."
    )


def test_no_code_runs(tmp_path):
    marker = tmp_path / "ran"
    for data in malicious(marker):
        path = tmp_path / "evil.pth"
        path.write_bytes(data)
        with_placeholders = unpickle.read(path)
        assert with_placeholders is not None
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
        unpickle.read(path)
        assert not marker.exists(), data


def test_the_malicious_pickles_run_in_the_standard_unpickler(tmp_path):
    marker = tmp_path / "ran"
    for data in malicious(marker):
        pickle.loads(data)
        assert marker.exists(), data
        marker.unlink()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02csubprocess\nPopen\nU\x05touch\x85\x81}U\x04argsU\x01asb.",
        b"\x80\x04csubprocess\nPopen\nU\x05touch\x85}U\x05shell\x88s\x92.",
        # states that would replace a method or call __setstate__
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemscos\nsystem\nsb.",
        b"\x80\x02cnumpy\ndtype\nU\x02V8\x85R(K\x03U\x01|NNNK\x7ftb.",
    ],
)
def test_objects_and_states_are_inert(tmp_path, data):
    path = tmp_path / "strange.pkl"
    path.write_bytes(data)
    content = unpickle.read(path)
    assert content == {} or isinstance(content, unpickle.Placeholder)


def test_registered_extensions_are_refused(tmp_path, monkeypatch):
    import copyreg

    monkeypatch.setitem(copyreg._extension_registry, ("os", "system"), 7)
    monkeypatch.setitem(copyreg._inverted_registry, 7, ("os", "system"))
    monkeypatch.setitem(copyreg._extension_cache, 7, os.system)
    path = tmp_path / "extension.pkl"
    marker = tmp_path / "ran"
    touch = f"touch {marker}".encode()
    path.write_bytes(b"\x80\x02\x82\x07U" + bytes([len(touch)]) + touch + b"\x85R.")
    with pytest.raises(InputError):
        unpickle.read(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>not found</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"PK\x03\x04",
        b"\x80\x02Nr\xff\xff\xff\xff.junk"[:-5],  # a memo of 4 G entries, then no end
        b"\x80\x05\x96" + struct.pack("<Q", 2**60),  # a bytearray of an exabyte
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60),  # bytes of an exabyte
        b"\x80\x02" + b"(" * 100_000,
        b"\x80\x02]" + b"]a" * 10,
    ],
)
def test_garbage_is_refused(tmp_path, data):
    path = tmp_path / "garbage.pth"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"garbage\.pth is damaged or not a PyTorch checkpoint"):
        unpickle.read(path)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        unpickle.read(tmp_path / "none.pth")
    with pytest.raises(InputError, match="directory"):
        unpickle.read(tmp_path)


@pytest.mark.parametrize("format", FORMATS)
def test_truncated(tmp_path, format):
    data = (GOLDEN / f"{format}.pth").read_bytes()
    path = tmp_path / "short.pth"
    for size in {*range(0, len(data), 7), len(data) - 1}:
        path.write_bytes(data[:size])
        with pytest.raises(InputError):
            unpickle.read(path)


@pytest.mark.parametrize("format", FORMATS)
def test_flipped_bytes(tmp_path, format):
    """Damage is refused, or changes only values in a format without checksums."""
    data = (GOLDEN / f"{format}.pth").read_bytes()
    path = tmp_path / "flipped.pth"
    rng = random.Random(0)
    refused = 0
    for _ in range(600):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            content = unpickle.read(path)
        except InputError:
            refused += 1
        else:
            if format == "zip":
                assert_same(content["state_dict"], EXPECTED)
    assert refused > 80


def pickled(obj):
    stream = io.BytesIO()
    torch_file._Pickler(stream).dump(obj)
    return stream.getvalue()


class View:
    """A tensor that claims any offset, shape and strides of a storage of 24 numbers."""

    def __init__(self, offset, shape, strides, numel=24):
        storage = torch_file._Storage("0", np.dtype("<f4"), numel)
        self.reduced = torch_file._REBUILD_TENSOR, (storage, offset, shape, strides, False, {})

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    "view",
    [
        View(0, (25,), (1,)),
        View(1, (24,), (1,)),
        View(0, (2,), (24,)),
        View(-1, (2,), (1,)),
        View(3, (2,), (-1,)),
        View(0, (-2,), (1,)),
        View(0, (2**40,), (1,)),
        View(0, (24,), (1,), numel=2**40),
        View(0, (1,), (1,), numel=1),
        View(0, (2, 2), (1,)),
    ],
)
def test_a_view_beyond_its_storage_is_refused(tmp_path, view):
    path = tmp_path / "view.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled({"a": view}))
        archive.writestr("archive/data/0", ARANGE.tobytes())
    with pytest.raises(InputError, match="damaged"):
        unpickle.read(path)


def test_an_expanded_view_is_not_allocated(tmp_path):
    path = tmp_path / "huge.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled({"a": View(0, (2**40,), (0,))}))
        archive.writestr("archive/data/0", ARANGE.tobytes())
    assert unpickle.read(path)["a"].shape == (2**40,)


def test_compressed_records_are_refused(tmp_path):
    path = tmp_path / "compressed.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled({}))
    with pytest.raises(InputError, match="compressed"):
        unpickle.read(path)


def test_strings_of_python_2(tmp_path):
    path = tmp_path / "python2.pkl"
    path.write_bytes(b"\x80\x02}U\x05blobsU\x02\xe9\xffs.")
    assert unpickle.read(path) == {"blobs": "\xe9\xff"}


def test_ordered_dicts_keep_their_order(tmp_path):
    path = tmp_path / "ordered.pkl"
    ordered = collections.OrderedDict([("b", 1), ("a", 2)])
    path.write_bytes(pickle.dumps(ordered, protocol=2))
    assert list(unpickle.read(path)) == ["b", "a"]
