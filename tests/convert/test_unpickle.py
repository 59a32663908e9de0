"""The restricted unpickler: it reads what PyTorch writes and runs no code."""

import collections
import contextlib
import io
import os
import pathlib
import pickle
import random
import struct
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlocal_jax.convert import _torch_file as torch_file
from nonlocal_jax.convert import _unpickle as unpickle
from nonlocal_jax.convert._pickled import GLOBALS
from nonlocal_jax.errors import InputError
from tests.convert import python2

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
    assert {"counts", "path", "size", "device"} <= foreign.keys()
    assert meta["best"] == 0.5


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


def test_flipped_bytes(tmp_path):
    """Damage of a zip file is refused, or changes nothing."""
    data = (GOLDEN / "zip.pth").read_bytes()
    path = tmp_path / "flipped.pth"
    rng = random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            content = unpickle.read(path)
        except InputError:
            refused += 1
        else:
            assert_same(content["state_dict"], EXPECTED)
    assert refused > 30


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


NUMPY = {
    **{
        code: np.arange(-3 if code[1] in "if" else 0, 6).astype(code)
        for order in "<>"
        for code in (f"{order}{kind}" for kind in ("i2", "i4", "i8", "u2", "u4", "u8", "f4", "f8"))
    },
    "i1": np.arange(-3, 6, dtype="i1"),
    "u1": np.arange(256, dtype="u1"),  # every byte
    "f2": np.float16([0.5, np.inf]),
    "?": np.array([True, False]),
    "clip": ARANGE.reshape(2, 3, 4),
    "fortran": np.asfortranarray(ARANGE.reshape(2, 3, 4)),
    "scalar": np.array(7.0),
    "empty": np.zeros((0, 3), np.float32),
}
SCALARS = {"f8": np.float64(0.1), "f4": np.float32(0.1), "i8": np.int64(-5), "?": np.bool_(True)}


def python3(obj, protocol):
    """As Python 3 with NumPy 1 pickles it."""
    return pickle.dumps(obj, protocol).replace(b"numpy._core.", b"numpy.core.")


PICKLES = [
    *((pickle.dumps, protocol) for protocol in range(5)),
    *((python3, protocol) for protocol in range(4)),
    *((python2.dumps, protocol) for protocol in (0, 2)),
]


def read(tmp_path, data):
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    return unpickle.read(path)


@pytest.mark.parametrize(("dumps", "protocol"), PICKLES)
def test_arrays_of_numpy(tmp_path, dumps, protocol):
    content = {"blobs": NUMPY, "again": NUMPY["clip"], "scalars": SCALARS}
    found = read(tmp_path, dumps(content, protocol))
    assert_same(found["blobs"], NUMPY)
    assert found["again"] is found["blobs"]["clip"]
    assert not any(array.flags.writeable for array in found["blobs"].values())
    assert found["scalars"] == SCALARS
    for code, scalar in found["scalars"].items():
        assert scalar.dtype == code


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}, "a"], object),
        np.array(["text"]),
        np.array([b"text"]),
        np.array([1j]),
        np.array(["2020-01-01"], "datetime64[D]"),
        np.zeros(2, [("a", "f4"), ("b", "i4")]),
        np.zeros(2, "V8"),
        np.array([1, 2], np.longdouble),
        ARANGE.view(np.recarray),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2])
def test_other_arrays_are_not_imported(tmp_path, array, protocol):
    content = read(tmp_path, pickle.dumps({"a": array, "b": ARANGE}, protocol))
    assert isinstance(content["a"], unpickle.Placeholder)
    np.testing.assert_array_equal(content["b"], ARANGE)
    with pytest.raises(InputError, match="'a': an object of"):
        torch_file.read_state_dict(tmp_path / "a.pkl")


def forged(
    *, shape=b"K\x03\x85", code=b"U\x02f4", order=b"U\x01<", fields=b"N", fortran=b"\x89", size=12
):
    """A pickle of one array, as Python 2 writes it."""
    dtype = b"cnumpy\ndtype\n(" + code + b"K\x00K\x01tR"
    dtype += b"(K\x03" + order + b"N" + fields + b"NJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    data = b"U" + bytes([size]) + bytes(size)
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    return b"\x80\x02}U\x01a" + array + b"(K\x01" + shape + dtype + fortran + data + b"tbs."


FORGED = {
    "truncated": forged(size=11),
    "oversized": forged(size=16),
    "a number more": forged(shape=b"K\x04\x85"),
    "huge": forged(shape=b"\x8a\x06\0\0\0\0\0\x01\x85"),
    "of overflowing size": forged(shape=b"\x8a\x05\0\0\0\0\x01" * 2 + b"\x86", size=0),
    "negative": forged(shape=b"J\xff\xff\xff\xffJ\xfd\xff\xff\xff\x86"),
    "negative and empty": forged(shape=b"K\x00J\xff\xff\xff\xff\x86", size=0),
    "of fractions": forged(shape=b"G\x40\x08\0\0\0\0\0\0\x85"),
    "without a shape": forged(shape=b"K\x03"),
    "of 70 axes": forged(shape=b"(" + b"K\x01" * 69 + b"K\x03t"),
    "with fields": forged(fields=b"U\x01a\x85"),
    "in no byte order": forged(order=b"U\x01V"),
    "in two byte orders": forged(order=b"U\x02<>"),
    "with a list of bytes": forged().replace(b"U\x0c" + bytes(12), b"]"),
    "with text": forged().replace(b"U\x0c" + bytes(12), b"V" + b"\\u0100" * 12 + b"\n"),
    "with a tensor's type": forged().replace(b"K\x03U\x01<", b"K\x03ctorch\nFloatStorage\n"),
    "bytes in another encoding": b"\x80\x02c_codecs\nencode\nU\x01aU\x05utf-8\x86R.",
    "bytes by another codec": b"\x80\x02c_codecs\nencode\nU\x01aU\x05rot13\x86R.",
    "a scalar of two": b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n(U\x02f4tR"
    b"(K\x03U\x01<NNNNNNtbU\x08" + bytes(8) + b"\x86R.",
}


def test_the_forged_arrays_are_forged(tmp_path):
    """Without the forgery, the same bytes are an array."""
    np.testing.assert_array_equal(read(tmp_path, forged())["a"], np.zeros(3, np.float32))
    np.testing.assert_array_equal(
        read(tmp_path, forged(shape=b"K\x00K\x03\x86", size=0, fortran=b"\x88"))["a"],
        np.zeros((0, 3), np.float32),
    )


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED)
def test_forged_arrays_are_refused(tmp_path, data):
    with pytest.raises(InputError, match="damaged or not a PyTorch checkpoint"):
        read(tmp_path, data)


def test_a_pickled_array_is_not_a_state_dict(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(ARANGE, 2))
    with pytest.raises(InputError, match="an object of type ndarray instead of a state dict"):
        torch_file.read_state_dict(tmp_path / "a.pkl")


@pytest.mark.parametrize("dumps", [pickle.dumps, python2.dumps])
def test_truncated_arrays(tmp_path, dumps):
    data = dumps({"blobs": {"a_w": ARANGE, "lr": np.float32(0.1)}}, 2)
    for size in range(0, len(data), 5):
        with pytest.raises(InputError):
            read(tmp_path, data[:size])


# What a pickle can name: what this reader knows, and what would run or read something.
_NAMED = st.sampled_from(
    [
        *GLOBALS,
        ("os", "system"),
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("builtins", "open"),
        ("numpy", "load"),
        ("numpy", "fromfile"),
        ("numpy", "memmap"),
        ("numpy.lib.npyio", "load"),
        ("numpy.testing._private.utils", "runstring"),
        ("_codecs", "decode"),
        ("_codecs", "lookup"),
        ("copyreg", "_reconstructor"),
        ("functools", "partial"),
    ]
).map(lambda name: b"c" + "\n".join(name).encode() + b"\n")
_VALUES = st.sampled_from(
    [
        *(b"N", b"\x88", b"]", b"}", b")", b"(", b"h\x00", b"h\x01", b"S'touch ran'\n"),
        *(b"K\x00", b"K\x03", b"K\x03\x85", b"J\xff\xff\xff\xff", b"U\x0c" + bytes(12)),
        *(b"U\x02f4", b"U\x01<", b"U\x01O", b"U\x06latin1", forged()[2:-1]),
    ]
)
_OPERATIONS = st.sampled_from(
    [
        *(b"R", b"b", b"t", b"\x81", b"\x85", b"\x86", b"\x87", b"s", b"u", b"a", b"e", b"o"),
        *(b"q\x00", b"q\x01", b"\x92", b"Q", b"1", b"l", b"d", b"2", b"0"),
        *(b"ios\nsystem\n", b"inumpy\ndtype\n"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_NAMED | _VALUES | _OPERATIONS | _OPERATIONS, max_size=24))
def test_no_pickle_runs_anything(tmp_path_factory, parts):
    directory = tmp_path_factory.mktemp("any")
    (directory / "a.pkl").write_bytes(b"\x80\x02" + b"".join(parts) + b".")
    happened = []
    with audited(happened.append), contextlib.suppress(InputError):
        unpickle.read(directory / "a.pkl")
    assert not happened


_FORBIDDEN = ("import", "exec", "compile", "os.", "subprocess.", "socket.", "ctypes.", "shutil.")
_listeners = []


def _hook(event, args):
    for listener in _listeners:
        if event.startswith(_FORBIDDEN):
            listener((event, args))


@contextlib.contextmanager
def audited(listener):
    """Reports what the interpreter imports, compiles, starts or executes."""
    if not audited.installed:  # an audit hook cannot be removed
        sys.addaudithook(_hook)
        audited.installed = True
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


audited.installed = False


def test_the_audit_sees_what_a_pickle_runs(tmp_path):
    happened = []
    with audited(happened.append):
        for data in malicious(tmp_path / "ran"):
            before = len(happened)
            pickle.loads(data)
            assert len(happened) > before, data


def test_ordered_dicts_keep_their_order(tmp_path):
    path = tmp_path / "ordered.pkl"
    ordered = collections.OrderedDict([("b", 1), ("a", 2)])
    path.write_bytes(pickle.dumps(ordered, protocol=2))
    assert list(unpickle.read(path)) == ["b", "a"]


def test_the_memo_may_have_gaps(tmp_path):
    """As after ``pickletools.optimize`` of Python 2."""
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02}X\x0a\0\0\0state_dictq\x05}sh\x05\x86.")
    assert unpickle.read(path) == ({"state_dict": {}}, "state_dict")


def test_a_checkpoint_may_have_a_long_list(tmp_path):
    path = tmp_path / "a.pkl"
    content = {"state_dict": {}, "indices": list(range(600_000))}
    path.write_bytes(pickle.dumps(content, 2))
    assert unpickle.read(path) == content


def test_the_pickle_of_a_legacy_file_is_counted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickle, "_MAX_READS", 1000)
    path = tmp_path / "a.pth"
    head = (unpickle._LEGACY_MAGIC, 1001, {})
    for length, fits in ((400, True), (600, False)):
        content = list(range(length))
        parts = (*head, content, [])
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
        if fits:
            assert unpickle.read(path) == content
        else:
            with pytest.raises(InputError, match=r"too much .*; save only model\.state_dict\(\)"):
                unpickle.read(path)
