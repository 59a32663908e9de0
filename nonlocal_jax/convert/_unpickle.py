"""Reads pickled checkpoints without running any code that they name.

A pickle is a program that names functions and calls them. This reader knows only the few names
that tensors, NumPy arrays of numbers and plain containers need. It replaces every other name with
an inert ``Placeholder`` and never imports anything.

A small pickle can also build values that take forever to hash, to compare or to print, such as a
tuple of two references to a tuple of two references, 40 times, or that take gigabytes. So nothing
here hashes, compares or prints a value before its type is known, and the number of operations is
limited.
"""

import io
import mmap
import pickle
import struct
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from nonlocal_jax._files import PathLike, check_is_file
from nonlocal_jax.convert._mistaken import damaged
from nonlocal_jax.convert._pickled import (
    GLOBALS,
    STORAGE_DTYPES,
    Builder,
    Placeholder,
    Storage,
    are_sizes,
    as_key,
)
from nonlocal_jax.convert._zip import Records
from nonlocal_jax.errors import InputError

__all__ = ["STORAGE_DTYPES", "Placeholder", "read"]

# The first object of a file written before PyTorch 1.6.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

# Reads of a pickle. Each operation needs one or more. A ResNet-101 with the momentum of all its
# parameters needs 70,000, and a list of a million numbers 2,000,000. The slowest take 5 s, and
# a file of PyTorch before 1.6 is read twice.
_MAX_READS = 2_500_000

_SET = Placeholder("a set")

_MAX_ARGUMENTS = 16  # of a function

# Of the pickle in a zip file, in bytes. Tensors are stored outside of it.
_MAX_PICKLE = 2**28


class _TooLongError(Exception):
    """A pickle has too many operations."""


class _Limited:
    """A file of pickles. What is built from it is limited.

    Args:
      file: The file.
      size: Its size in bytes.
    """

    def __init__(self, file: Any, size: int):
        self._file = file
        self._reads_left = _MAX_READS
        # A file of n bytes has at most n characters of text, but it can refer to them again.
        self._text_left = 2 * size

    def count(self, number: int) -> None:
        self._reads_left -= number
        if self._reads_left < 0:
            raise _TooLongError

    def count_copied(self, values: tuple) -> None:
        """Counts the text and the items of the arguments of a function, which copies them."""
        self.count(sum(len(value) for value in values if type(value) in (list, tuple)))
        self._text_left -= sum(len(value) for value in values if type(value) is str)
        if self._text_left < 0:
            raise ValueError("the pickle copies its text again and again")

    def read(self, size: int) -> bytes:
        self.count(1)
        return self._file.read(size)

    def readline(self) -> bytes:
        self.count(1)
        return self._file.readline()


class _Memo(dict):
    """The objects that a pickle refers to again. An object that was built replaces its builder.

    The keys are strings, as integers could be chosen to make a dict slow, see ``as_key``.
    """

    def __setitem__(self, key: int, value: Any) -> None:
        super().__setitem__(str(key), value)

    def __getitem__(self, key: int) -> Any:
        value = super().__getitem__(str(key))
        built = isinstance(value, Builder) and value.result is not None
        return value.result if built else value


# (dtype, key, number of elements) -> the storage
_FindStorage = Callable[[np.dtype, str, int], Storage | Placeholder]


class _Unpickler(pickle._Unpickler):
    """A restricted version of the standard library's unpickler.

    It extends the Python implementation, because the one in C allocates as much memory as a damaged
    file asks for. Strings of Python 2 are decoded as latin1, which accepts any byte.

    Args:
      file: The file, at the beginning of the pickle.
      find_storage: Finds the storage of a tensor.
    """

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)
    # The extension registry names what the process registered, and bytearrays are allocated before
    # they are read. No checkpoint contains either.
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8):
        del dispatch[_code[0]]

    def __init__(self, file: _Limited, find_storage: _FindStorage | None = None):
        super().__init__(file, encoding="latin1")
        self.memo = _Memo()
        self._file = file
        self._find_storage = find_storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in GLOBALS:
            return GLOBALS[module, name]
        return Placeholder(f"{module[:200]}.{name[:200]}")

    def persistent_load(self, pid: Any) -> Any:
        if type(pid) is not tuple or not 2 <= len(pid) <= 6 or type(pid[0]) is not str:
            raise ValueError("a storage without a kind")
        kind, what, *rest = pid
        if kind == "module" or isinstance(what, Placeholder):
            return what
        if kind != "storage" or any(view is not None for view in rest[3:]):
            raise ValueError("a storage of an unknown kind")
        key, _, numel = rest[:3]
        valid = isinstance(what, np.dtype) and type(key) is str and are_sizes((numel,))
        if not valid or self._find_storage is None:
            raise ValueError("a storage without a type, a name or a size")
        return self._find_storage(what, key, numel)

    def _call(self, function: Any, args: Any) -> Any:
        """Calls a function of ``GLOBALS``. A placeholder is its own result."""
        if isinstance(function, Placeholder):
            return function
        if type(args) is not tuple or len(args) > _MAX_ARGUMENTS:
            raise ValueError("a function has too many arguments")
        self._file.count_copied(args)
        return function(*args)

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _new_object_with_keywords(self) -> None:
        self.stack.pop()  # no function here has keywords
        self._reduce()

    def _instantiate(self, function: Any, args: list) -> None:
        self.append(self._call(function, tuple(args)))

    def _set_state(self) -> None:
        # The other objects of a checkpoint have no state.
        state = self.stack.pop()
        builder = self.stack[-1]
        if isinstance(builder, Builder):
            if type(state) is not tuple or len(state) > _MAX_ARGUMENTS:
                raise ValueError(f"the state of {builder.name} is not a tuple")
            self._file.count_copied(state)
            builder.result = self.stack[-1] = builder.build(state)

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            pairs = zip(items[::2], items[1::2], strict=True)
            target.update((as_key(key), value) for key, value in pairs)
        elif not isinstance(target, Placeholder):
            raise ValueError("items of an object that is no dict")

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _new_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def _new_set(self) -> None:
        self.append(_SET)

    def _new_frozen_set(self) -> None:
        self.pop_mark()
        self._new_set()

    def _skip_frame(self) -> None:
        self.read(8)  # the size of the frame, which would be copied

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = _reduce
    dispatch[pickle.NEWOBJ_EX[0]] = _new_object_with_keywords
    dispatch[pickle.BUILD[0]] = _set_state
    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = lambda self: self._set_items(self.pop_mark())
    dispatch[pickle.DICT[0]] = _new_dict
    dispatch[pickle.EMPTY_SET[0]] = _new_set
    dispatch[pickle.FROZENSET[0]] = _new_frozen_set
    dispatch[pickle.FRAME[0]] = _skip_frame


def _storage(data: memoryview, dtype: np.dtype, numel: int, name: str) -> Storage:
    if len(data) != numel * dtype.itemsize:
        raise ValueError(f"storage {name} has {len(data)} bytes, not {numel} of {dtype}")
    return Storage(dtype, data)


def _read_zip(file: io.BufferedReader, content: memoryview) -> Any:
    """Reads a file of PyTorch 1.6 or newer: an uncompressed zip of data.pkl and the storages."""
    records = Records(file, content)
    pickles = [name for name in records.names() if name.endswith("data.pkl")]
    if len(pickles) != 1:
        raise ValueError("a zip file without data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    byte_order = f"{root}byteorder"
    swap = byte_order in records.names() and records[byte_order] == b"big"
    storages: dict[str, Storage] = {}

    def find_storage(dtype: np.dtype, key: str, numel: int) -> Storage:
        if key not in storages:  # each record is checked and swapped once
            data = records[f"{root}data/{key}"]
            if swap:
                data = np.frombuffer(data, f"u{dtype.itemsize}").byteswap().view("u1").data
            storages[key] = Storage(dtype, data)
        if storages[key].dtype != dtype:
            raise ValueError(f"storage {key} has two types")
        return _storage(storages[key].data, dtype, numel, key)

    data = records[pickles[0]]
    if len(data) > _MAX_PICKLE:
        raise ValueError(f"data.pkl has {len(data):,} bytes")
    return _Unpickler(_Limited(io.BytesIO(data), len(data)), find_storage).load()


def _read_pickle(stream: mmap.mmap, content: memoryview) -> Any:
    """Reads a plain pickle, or a file of PyTorch before 1.6: pickles, then the storages."""
    file = _Limited(stream, len(content))

    def load(find_storage: _FindStorage | None = None) -> Any:
        return _Unpickler(file, find_storage).load()

    first = load()
    if not (isinstance(first, int) and first == _LEGACY_MAGIC):
        return first
    load()  # version of the protocol
    load()  # sizes of C types
    start = stream.tell()

    # The storages follow the pickle, but only the pickle has their types. So it is read twice.
    dtypes = {}

    def note_dtype(dtype: np.dtype, key: str, _: int) -> Placeholder:
        dtypes[key] = dtype
        return Placeholder("a storage")

    load(note_dtype)
    keys = load()
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise ValueError("the names of the storages are not strings")
    storages = {}
    for key in keys:
        (numel,) = struct.unpack("<Q", stream.read(8))
        begin, size = stream.tell(), numel * dtypes[key].itemsize
        storages[key] = content[begin : begin + size]
        stream.seek(begin + size)

    stream.seek(start)
    file = _Limited(stream, len(content))  # the same operations do not count twice
    return load(lambda dtype, key, numel: _storage(storages[key], dtype, numel, key))


def read(path: PathLike) -> Any:
    """Reads the object in a ``.pth`` file of any PyTorch since 0.4, or in a plain pickle.

    Tensors become read-only NumPy arrays that view the memory-mapped file, so only the arrays in
    use are read from disk. NumPy arrays and scalars of numbers are read too, as Python 2 and 3
    pickle them. Ordered dicts become dicts. Everything else that the pickle would import becomes a
    ``Placeholder``, and so do sets and the keys of dicts that are not short strings.

    The values can be nested deeply, can contain themselves, and can have the same part in many
    places, so they must not be walked.

    Raises:
      InputError: The file cannot be read, is damaged, is no pickle, or contains too many objects.
    """
    check_is_file(path)
    try:
        with open(path, "rb") as file:
            try:
                stream = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                content = memoryview(stream)
                if content[:4] == b"PK\x03\x04":
                    return _read_zip(file, content)
                return _read_pickle(stream, content)
            except _TooLongError as error:
                raise InputError(
                    f"{path} contains too much besides its arrays, such as a list of millions of "
                    "numbers; save only model.state_dict()"
                ) from error
            except Exception as error:  # a damaged file can raise anything
                raise damaged(path, "a PyTorch checkpoint", error) from error
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; check the path and its permissions"
        ) from error
