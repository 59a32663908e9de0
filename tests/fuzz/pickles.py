"""Pickles that are damaged, random, or made to be hard on their reader."""

import collections
import enum
import functools
import io
import pickle
import random
import struct
from collections.abc import Iterator, Mapping

import numpy as np

from nonlocal_jax.convert import _torch_file as torch_file
from nonlocal_jax.convert._pickled import GLOBALS
from tests.convert import python2
from tests.fuzz import models, mutations

LITERALS = (
    *(b"N", b"\x88", b"\x89", b"]", b"}", b")", b"(", b"\x8f", b"K\x00", b"K\x03", b"M\xff\xff"),
    *(b"J\xff\xff\xff\xff", b"I5\n", b"L7L\n", b"\x8a\x09" + bytes(8) + b"\x7f", b"F1e999\n"),
    *(b"G\x7f\xf8" + bytes(6), b"U\x02f4", b"U\x01<", b"U\x06latin1", b"X\x01\0\0\0a"),
    *(b"\x8c\x0astate_dict", b"S'a'\n", b"V\\u20ac\n", b"C\x04abcd", b"U\x07storage"),
    *(b"h\0", b"h\1", b"g2\n", b"j\3\0\0\0", b"Pa\n"),
)
OPERATIONS = (
    *(b"R", b"b", b"t", b"\x81", b"\x85", b"\x86", b"\x87", b"s", b"u", b"a", b"e", b"o", b"Q"),
    *(b"q\0", b"q\1", b"p2\n", b"r\3\0\0\0", b"\x94", b"\x92", b"1", b"l", b"d", b"2", b"0"),
    *(b"\x90", b"\x91", b"\x93", b"\x97", b"\x98", b"ios\nsystem\n", b"inumpy\ndtype\n"),
)
# Operations with the size of what follows, which is not there.
HUGE = (
    *(b"\x8e" + struct.pack("<Q", 2**n) for n in (31, 40, 62, 63)),  # BINBYTES8
    *(b"\x8d" + struct.pack("<Q", 2**n) for n in (31, 40, 62, 63)),  # BINUNICODE8
    *(b"\x96" + struct.pack("<Q", 2**n) for n in (31, 40, 62, 63)),  # BYTEARRAY8
    *(b"\x95" + struct.pack("<Q", 2**n) for n in (31, 40, 62, 63)),  # FRAME
    *(code + struct.pack("<I", n) for code in (b"X", b"T", b"B") for n in (2**31 - 1, 2**32 - 1)),
    *(b"\x8b" + struct.pack("<i", n) for n in (2**31 - 1, -1)),  # LONG4
    *(code + struct.pack("<I", 2**32 - 1) for code in (b"r", b"j")),  # LONG_BINPUT, LONG_BINGET
)
_NAMES = (*GLOBALS, ("os", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("a", "b"))


class Color(enum.Enum):
    RED = 1


@functools.cache
def samples() -> tuple[bytes, ...]:
    """Pickles that are read without an error. Some have the weights of a network."""
    arrays = {
        "f4": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "big": np.arange(5, dtype=">f8"),
        "none": np.zeros((0, 3), np.int64),
        "flag": np.array([True]),
        "lr": np.float32(0.1),
    }
    plain = {"blobs": arrays, "names": ("a", b"b", "\xe9"), "numbers": [1, 2**70, 0.5, None, True]}
    strange = {
        "set": {1, "a"},
        "frozen": frozenset({2}),
        (1, 2): Color.RED,
        3: collections.OrderedDict(a=1),
        None: range(3),
    }
    weights = models.pytorch_arrays()
    return (
        *(pickle.dumps(plain | strange, protocol) for protocol in range(6)),
        *(pickle.dumps({"model_state": weights}, protocol) for protocol in (2, 4)),
        *(python2.dumps({"blobs": arrays}, protocol) for protocol in (0, 2)),
        torch_pickle(weights),
    )


def torch_pickle(content: object) -> bytes:
    """The pickle in a file of PyTorch, which names its storages."""
    stream = io.BytesIO()
    torch_file._Pickler(stream).dump(content)
    return stream.getvalue()


def random_one(rng: random.Random) -> bytes:
    """A damaged sample, or a program of random operations."""
    if rng.random() < 0.7:
        return mutations.damage(rng, rng.choice(samples()), _operation)
    return b"\x80\x02" + b"".join(_operation(rng) for _ in range(rng.randrange(1, 60))) + b"."


def _operation(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(LITERALS)
    if kind < 0.8:
        return rng.choice(OPERATIONS)
    if kind < 0.85:
        return rng.choice(HUGE)
    return b"c" + "\n".join(rng.choice(_NAMES)).encode() + b"\n"


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


BOMB = b")" + b"2\x86" * 40  # a tuple with 2**40 leaves
NEST = b")" + b"\x85" * 200_000  # a tuple in a tuple, 200,000 times
REBUILD = name("torch._utils", "_rebuild_tensor_v2")
_STORAGE = b"(" + text("storage") + name("torch", "FloatStorage") + b"%sX\x03\0\0\0cpu%stQ"


def storage(key: bytes = text("0"), numel: bytes = b"K\x18") -> bytes:
    """A reference to a storage, by default to one of 24 numbers with the name 0."""
    return _STORAGE % (key, numel)


def tensor(
    of: bytes | None = None,
    offset: bytes = b"K\x00",
    shape: bytes = b"K\x02\x85",
    strides: bytes = b"K\x01\x85",
) -> bytes:
    """A tensor of PyTorch."""
    arguments = (storage() if of is None else of) + offset + shape + strides
    return REBUILD + b"(" + arguments + b"\x89}tR"


_DTYPE = name("numpy", "dtype") + b"(U\x02f4K\x00K\x01tR"
_DTYPE_STATE = b"(K\x03%sNNN%sJ\xff\xff\xff\xffK\x00tb"
_ARRAY = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\x00\x85"
_ARRAY += b"U\x01b\x87R"


def array(
    shape: bytes = b"K\x03\x85",
    order: bytes = b"U\x01<",
    size: bytes = b"J\xff\xff\xff\xff",
    fortran: bytes = b"\x89",
    data: bytes = b"U\x0c" + bytes(12),
    dtype: bytes | None = None,
) -> bytes:
    """An array of NumPy."""
    dtype = _DTYPE + _DTYPE_STATE % (order, size) if dtype is None else dtype
    return _ARRAY + b"(K\x01" + shape + dtype + fortran + data + b"tb"


def _values(value: bytes) -> Iterator[tuple[str, bytes]]:
    """Pickles with this value wherever one is hashed, compared, computed with or printed."""
    yield "alone", value
    yield "key", b"}" + value + b"K\x01s"
    yield "key of SETITEMS", b"}(" + value + b"K\x01u"
    yield "key of DICT", b"(" + value + b"K\x01d"
    yield "key of a state dict", b"}" + text("state_dict") + b"}" + value + b"K\x01ss"
    yield "weight", b"}" + text("a.weight") + value + b"s"
    yield "in a set", b"\x8f(" + value + b"\x90"
    yield "in a frozen set", b"(" + value + b"\x91"
    yield "in an ordered dict", name("collections", "OrderedDict") + b"]](" + value + b"Nea\x85R"
    yield "pairs of an ordered dict", name("collections", "OrderedDict") + value + b"\x85R"
    yield "persistent id", value + b"Q"
    yield "kind", b"(" + value + name("torch", "FloatStorage") + text("0") + b"NK\x01tQ"
    yield "type of a storage", b"(" + text("storage") + value + text("0") + b"NK\x01tQ"
    yield "key of a storage", tensor(storage(key=value))
    yield "size of a storage", tensor(storage(numel=value))
    yield "view of a storage", storage()[:-2] + value + b"tQ"
    yield "storage of a tensor", tensor(value)
    yield "offset of a tensor", tensor(offset=value)
    yield "shape of a tensor", tensor(shape=value)
    yield "length of a tensor", tensor(shape=value + b"\x85")
    yield "strides of a tensor", tensor(strides=value)
    yield "shape of an array", array(shape=value)
    yield "length of an array", array(shape=value + b"\x85")
    yield "order of an array", array(fortran=value)
    yield "bytes of an array", array(data=value)
    yield "type of an array", array(dtype=value)
    yield "byte order of a dtype", array(order=value)
    yield "size of a dtype", array(size=value)
    yield "state of a dtype", _DTYPE + value + b"b"
    yield "state of an array", _ARRAY + value + b"b"
    yield "name of a dtype", name("numpy", "dtype") + value + b"\x85R"
    yield "arguments", REBUILD + value + b"R"
    yield "arguments of a class", name("a", "B") + value + b"\x81"
    yield "keywords", name("a", "B") + b")" + value + b"\x92"
    yield "called", value + b")R"
    yield "name", value + value + b"\x93"
    yield "encoded", name("_codecs", "encode") + value + text("latin1") + b"\x86R"
    yield "encoding", name("_codecs", "encode") + text("a") + value + b"\x86R"
    yield "state of a class", name("a", "B") + b")\x81" + value + b"b"
    yield "appended to", value + b"Na"
    yield "item set", value + b"K\x00Ns"
    yield "added to", value + b"(N\x90"


def _program(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def _slow_integers(count: int) -> list[int]:
    """Integers in the order in which a dict of 2**18 entries looks for a free one."""
    found, place = [], 1
    for _ in range(count):
        found.append(place)
        place = (5 * place + 1) % 2**18
    return found


def hostile() -> Mapping[str, bytes]:
    """Pickles that were written to break a reader, by name."""
    cases = {}
    values = {
        "a bomb": BOMB,
        "a nest": NEST,
        "a deep list": b"]" * 100_000 + b"a" * 99_999,
        "a list of itself": b"]\x94h\0a",
        "a dict of itself": b"}\x94" + text("state_dict") + b"h\0s",
        "a long text": text("\u202e\x1b[31m" + "a" * 300_000),
        "a huge integer": b"\x8b" + struct.pack("<i", 300_000) + b"\x7f" * 300_000,
        "a negative integer": b"J\xff\xff\xff\xff",
        "not a number": b"G\x7f\xf8" + bytes(6),
        "a class": name("a", "b\x1b[31m"),
        "a storage": storage(),
        "bytes": b"C\x04abcd",
        "a long tuple": b"(" + b"N" * 200_000 + b"t",
        "a builder": _ARRAY,
    }
    for value_name, value in values.items():
        for place, body in _values(value):
            cases[f"{value_name}: {place}"] = _program(body)
    many = 300_000
    repeated = {
        "marks": b"(",
        "lists": b"]",
        "dicts": b"}",
        "sets": b"\x8f",
        "classes": b"(ia\nb\n",
        "texts": b"Va\n",
        "floats": b"G" + bytes(8),
        "duplicates": b"N2",
        "frames": b"\x95" + bytes(8),
        "protocols": b"\x80\x04",
    }
    for what, body in repeated.items():
        cases[f"{what} without end"] = _program(body * (4_000_000 // len(body)))
    again = {  # a value that is built once, and an operation that is repeated
        "copied pairs": (
            b"](" + b"".join(b"](" + text(f"{i}") + b"Ne" for i in range(20_000)) + b"e\x85\x94",
            name("collections", "OrderedDict") + b"h\0R",
        ),
        "copied pairs of a tuple": (
            b"(" + b"NN\x86" * 20_000 + b"t\x85\x94",
            name("collections", "OrderedDict") + b"h\0R",
        ),
        "wide names": (text("\U0001f600" * 300) + b"\x94", b"h\x002\x93"),
        "names of names": (
            name("a", "b") + b"p0\n",
            b"0" + array(shape=b")", data=b"C\0", dtype=b"g0\n") + b"p0\n",
        ),
        "encoded text": (
            text("a" * many) + text("latin1") + b"\x86\x94",
            name("_codecs", "encode") + b"h\0R",
        ),
        "long names": (text("a" * many) + b"\x94", b"h\0h\0\x93"),
        "long arguments": (b"(" + b"N" * many + b"t\x94" + REBUILD + b"\x94", b"h\1h\0R"),
        "a long key": (
            b"}\x94" + text("k" * many) + b"\x94" + text("k" * many) + b"\x94",
            b"h\0h\1Nsh\0h\2Ns",
        ),
        "arrays of text": (
            text("a" * many) + b"\x94" + _DTYPE + b"\x94",
            array(shape=b"J" + struct.pack("<i", many // 4) + b"\x85", data=b"h\0"),
        ),
        "many axes": (
            tensor(shape=b"(" + b"K\x01" * 64 + b"t", strides=b"(" + b"K\0" * 64 + b"t"),
            b"N",
        ),
    }
    for what, (first, body) in again.items():
        cases[f"{what} again and again"] = _program(first + body * (10 * many // len(body)))
    # A memo whose indexes all get the same place in the dict of an unpickler.
    puts = b"".join(b"r" + struct.pack("<I", n) for n in _slow_integers(150_000))
    gets = (b"r" + struct.pack("<I", 1 + 2**23) + b"0N") * 300_000
    cases["a slow memo"] = _program(b"N" + puts + gets)
    keys = b"".join(b"J" + struct.pack("<i", n) + b"N" for n in _slow_integers(150_000))
    late = b"".join(b"J" + struct.pack("<i", 1 + n * 2**20) + b"N" for n in range(1000))
    cases["slow keys"] = _program(b"}(" + keys + late * 200 + b"u")
    cases |= {f"{body[:1]!r} of a huge size {i}": _program(body) for i, body in enumerate(HUGE)}
    view = tensor(shape=b"\x8a\x06\0\0\0\0\0\x01\x85", strides=b"K\0\x85")
    for weight in ("a.weight", "res2_0_branch2a_bn_s", "backbone.conv1.weight"):
        cases[f"a tensor of 2**40 numbers: {weight}"] = _program(b"}" + text(weight) + view + b"s")
    return cases
