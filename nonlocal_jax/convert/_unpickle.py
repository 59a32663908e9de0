"""Reads pickled checkpoints without running any code that they name.

A pickle is a program that names functions and calls them. This reader knows only the few names
that tensors, NumPy arrays of numbers and plain containers need. It replaces every other name with
an inert ``Placeholder`` and never imports anything.
"""

import functools
import io
import math
import mmap
import pickle
import struct
import textwrap
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from nonlocal_jax._files import PathLike
from nonlocal_jax.errors import InputError

STORAGE_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}

# The first object of a file written before PyTorch 1.6.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Placeholder:
    """Replaces an object that is not imported. Accepts any call and state, and stores nothing."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, *args, **kwargs) -> "Placeholder":
        return self

    def _ignore(self, *args) -> None:
        pass

    append = extend = add = __setitem__ = _ignore


class _Storage(NamedTuple):
    dtype: np.dtype
    data: memoryview


def _rebuild_tensor(
    storage: _Storage | Placeholder, offset: int, shape: tuple, strides: tuple, *_
) -> np.ndarray | Placeholder:
    """Returns a view of the storage. NumPy raises an error if the view exceeds the storage."""
    if isinstance(storage, Placeholder):
        return storage
    size = storage.dtype.itemsize
    if any(n < 0 for n in (offset, *shape, *strides)):
        raise ValueError("a tensor of negative size")
    strides = [size * n for n in strides]
    return np.ndarray(shape, storage.dtype, storage.data, size * offset, strides)


def _rebuild_parameter(tensor: Any, *_) -> Any:
    return tensor


class _Builder(Placeholder):
    """An array or a dtype of NumPy whose content follows it in the pickle, as its state."""

    def __init__(self, name: str, build: Callable[[Any], Any]):
        super().__init__(name)
        self.build = build
        self.result = None


class _Memo(dict):
    """The objects that a pickle refers to again. An object that was built replaces its builder."""

    def __getitem__(self, key: int) -> Any:
        value = super().__getitem__(key)
        built = isinstance(value, _Builder) and value.result is not None
        return value.result if built else value


def _numpy_dtype(code: str, *_) -> Placeholder:
    """Returns the builder of a number's dtype. Any other dtype is not imported."""
    if code not in _NUMPY_DTYPES:
        return Placeholder(f"numpy.dtype({code!r})")

    def build(state: tuple) -> np.dtype:
        _, order, *rest = state
        # Fields, shapes and metadata are not None. Sizes of -1 and flags of 0 are those of numbers.
        if order not in ("<", ">", "|") or any(x not in (None, -1, 0) for x in rest):
            raise ValueError(f"the dtype {code} has the state {state!r}")
        return np.dtype(order + code)

    return _Builder("numpy.dtype", build)


def _numpy_array(state: tuple) -> np.ndarray | Placeholder:
    """Returns a view of the bytes in the state of an array, which must be as many as it needs."""
    _, shape, dtype, is_fortran, data = state
    if isinstance(dtype, Placeholder):
        return Placeholder(f"numpy.ndarray with {dtype.name}")
    if isinstance(data, Placeholder):  # Python 3 calls ``bytes`` for no bytes
        data = b""
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    valid = isinstance(data, bytes) and len(shape) <= _MAX_AXES and all(n >= 0 for n in shape)
    if not valid or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"the bytes of an array do not fit its type {dtype} and shape {shape}")
    return np.ndarray(shape, dtype, data, order="F" if is_fortran else "C")


def _numpy_reconstruct(kind: Any, *_) -> Placeholder:
    is_array = kind is _NUMPY_ARRAY  # not of a subclass
    return _Builder("numpy.ndarray", _numpy_array) if is_array else Placeholder("a numpy array")


def _numpy_scalar(dtype: np.dtype | Placeholder, data: str | bytes) -> Any:
    array = _numpy_array((1, (), dtype, False, data))
    return array if isinstance(array, Placeholder) else array[()]


def _encode(text: str, encoding: str) -> bytes:
    """Returns bytes, which Python 3 writes as text for the older protocols."""
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_MAX_AXES = 64  # of NumPy

_NUMPY_DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_NUMPY_ARRAY = Placeholder("numpy.ndarray")

_GLOBALS = {
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _NUMPY_ARRAY,
    ("numpy", "dtype"): _numpy_dtype,
    **{
        (f"numpy.{core}.multiarray", name): function
        for core in ("core", "_core")  # before and since NumPy 2
        for name, function in (("_reconstruct", _numpy_reconstruct), ("scalar", _numpy_scalar))
    },
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()},
}

# (dtype, key, number of elements) -> the storage
_FindStorage = Callable[[np.dtype, str, int], _Storage | Placeholder]


class _Unpickler(pickle._Unpickler):
    """A restricted version of the standard library's unpickler.

    It extends the Python implementation, because the one in C allocates as much memory as a damaged
    file asks for. Strings of Python 2 are decoded as latin1, which accepts any byte.
    """

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)
    # The extension registry names what the process registered, and bytearrays are allocated before
    # they are read. No checkpoint contains either.
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8):
        del dispatch[_code[0]]

    def __init__(self, file: Any, find_storage: _FindStorage | None = None):
        super().__init__(file, encoding="latin1")
        self.memo = _Memo()
        self._find_storage = find_storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        return Placeholder(f"{module}.{name}")

    def persistent_load(self, pid: tuple) -> Any:
        kind, what, *rest = pid
        if kind == "module" or isinstance(what, Placeholder):
            return what
        key, _, numel = rest[:3]
        if kind != "storage" or any(view is not None for view in rest[3:]):
            raise ValueError(f"unknown kind of storage {kind!r}")
        return self._find_storage(what, key, numel)

    def _set_state(self) -> None:
        state = self.stack.pop()
        builder = self.stack[-1]
        if isinstance(builder, _Builder):
            builder.result = self.stack[-1] = builder.build(state)

    def _new_object(self) -> None:
        cls, args = self.stack[-2:]
        self.stack[-2:] = [cls(*args)]

    def _new_object_with_keywords(self) -> None:
        cls, args, kwargs = self.stack[-3:]
        self.stack[-3:] = [cls(*args, **kwargs)]

    # The other objects of a checkpoint have no state, and creating one means calling its class.
    dispatch[pickle.BUILD[0]] = _set_state
    dispatch[pickle.NEWOBJ[0]] = _new_object
    dispatch[pickle.NEWOBJ_EX[0]] = _new_object_with_keywords


def _storage(data: memoryview, dtype: np.dtype, numel: int, name: str) -> _Storage:
    if len(data) != numel * dtype.itemsize:
        raise ValueError(f"storage {name} has {len(data)} bytes, not {numel} of {dtype}")
    return _Storage(dtype, data)


def _read_zip(file: io.BufferedReader, content: memoryview) -> Any:
    """Reads a file of PyTorch 1.6 or newer: an uncompressed zip of data.pkl and the storages."""
    archive = zipfile.ZipFile(file)

    def record(name: str) -> memoryview:
        info = archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed; PyTorch writes uncompressed records")
        # The local header is 30 bytes, the name and extra fields.
        lengths = struct.unpack_from("<HH", content, info.header_offset + 26)
        start = info.header_offset + 30 + sum(lengths)
        data = content[start : start + info.file_size]
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise ValueError(f"the checksum of {name} is wrong")
        return data

    pickles = [n for n in archive.namelist() if n.endswith("data.pkl")]
    if len(pickles) != 1:
        raise ValueError("a zip file without data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    byte_order = f"{root}byteorder"
    swap = byte_order in archive.namelist() and bytes(record(byte_order)) == b"big"

    @functools.cache
    def find_storage(dtype: np.dtype, key: str, numel: int) -> _Storage:
        data = record(f"{root}data/{key}")
        if swap:
            data = np.frombuffer(data, f"u{dtype.itemsize}").byteswap().view("u1").data
        return _storage(data, dtype, numel, key)

    return _Unpickler(io.BytesIO(record(pickles[0])), find_storage).load()


def _read_pickle(stream: mmap.mmap, content: memoryview) -> Any:
    """Reads a plain pickle, or a file of PyTorch before 1.6: pickles, then the storages."""
    first = _Unpickler(stream).load()
    if not (isinstance(first, int) and first == _LEGACY_MAGIC):
        return first
    _Unpickler(stream).load()  # version of the protocol
    _Unpickler(stream).load()  # sizes of C types
    start = stream.tell()

    # The storages follow the pickle, but only the pickle has their types. So it is read twice.
    dtypes = {}

    def note_dtype(dtype: np.dtype, key: str, _: int) -> Placeholder:
        dtypes[key] = dtype
        return Placeholder("a storage")

    _Unpickler(stream, note_dtype).load()
    storages = {}
    for key in _Unpickler(stream).load():
        (numel,) = struct.unpack("<q", stream.read(8))
        begin, size = stream.tell(), numel * dtypes[key].itemsize
        storages[key] = content[begin : begin + size]
        stream.seek(begin + size)

    stream.seek(start)
    return _Unpickler(stream, lambda d, key, n: _storage(storages[key], d, n, key)).load()


def read(path: PathLike) -> Any:
    """Reads the object in a ``.pth`` file of any PyTorch since 0.4, or in a plain pickle.

    Tensors become read-only NumPy arrays that view the memory-mapped file, so only the arrays in
    use are read from disk. NumPy arrays and scalars of numbers are read too, as Python 2 and 3
    pickle them. Ordered dicts become dicts. Everything else that the pickle would import becomes a
    ``Placeholder``.

    Raises:
      InputError: The file cannot be read, is damaged, or is not a pickle.
    """
    try:
        with open(path, "rb") as file:
            try:
                stream = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                content = memoryview(stream)
                if content[:4] == b"PK\x03\x04":
                    return _read_zip(file, content)
                return _read_pickle(stream, content)
            except Exception as error:  # a damaged file can raise anything
                reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
                raise InputError(
                    f"{path} is damaged or not a PyTorch checkpoint ({reason}); "
                    "download or save it again"
                ) from error
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; check the path and its permissions"
        ) from error
