"""What a pickled checkpoint may name: the functions that rebuild its tensors and arrays.

Their arguments come from the file and may be anything, so each function checks their types before
it compares or computes. None of them formats an argument: printing a nested tuple can take forever.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

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

# Of a key, in characters. Two equal keys are compared in full whenever one is looked up.
_MAX_KEY = 500

_MAX_AXES = 64  # of NumPy


class Placeholder:
    """Replaces an object that is not imported. Accepts any items, and stores nothing."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name[:200]  # it can contain those of others

    def _ignore(self, *args) -> None:
        pass

    append = extend = add = _ignore


_OTHER_KEY = Placeholder("a key that is not a short string")


def as_key(value: Any) -> str | Placeholder:
    """Returns a key of a dict. All keys but short strings become one placeholder.

    The names of a state dict are strings. A tuple can take forever to hash, and there are integers
    that all get the same place in a dict. Only hashes of strings are random.
    """
    return value if type(value) is str and len(value) <= _MAX_KEY else _OTHER_KEY


class Storage(NamedTuple):
    """The numbers of one or more tensors."""

    dtype: np.dtype
    data: memoryview


class Builder(Placeholder):
    """An array or a dtype of NumPy whose content follows it in the pickle, as its state."""

    __slots__ = ("build", "result")

    def __init__(self, name: str, build: Callable[[tuple], Any]):
        super().__init__(name)
        self.build = build
        self.result = None


def are_sizes(values: Any) -> bool:
    """Returns whether a value is a tuple of integers that fit into 63 bits, without a sign."""
    return (
        type(values) is tuple
        and len(values) <= _MAX_AXES
        and all(type(n) is int and 0 <= n < 2**63 for n in values)
    )


def _ordered_dict(items: Any = ()) -> dict:
    """Returns a dict. Python 2 pickles the items of an ordered dict as a list of pairs."""
    if not isinstance(items, (list, tuple)) or not all(
        type(item) in (list, tuple) and len(item) == 2 for item in items
    ):
        raise ValueError("an ordered dict of something else than pairs")
    return {as_key(key): value for key, value in items}


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *_
) -> np.ndarray | Placeholder:
    """Returns a view of the storage. NumPy raises an error if the view exceeds the storage."""
    if isinstance(storage, Placeholder):
        return storage
    sizes = isinstance(storage, Storage) and are_sizes((offset,))
    if not (sizes and are_sizes(shape) and are_sizes(strides)):
        raise ValueError("a tensor of wrong or negative sizes")
    size = storage.dtype.itemsize
    strides = [size * n for n in strides]
    return np.ndarray(shape, storage.dtype, storage.data, size * offset, strides)


def _rebuild_parameter(tensor: Any, *_) -> Any:
    return tensor


def _numpy_dtype(code: Any, *_) -> Placeholder:
    """Returns the builder of a number's dtype. Any other dtype is not imported."""
    if type(code) is not str or code not in _NUMPY_DTYPES:
        return Placeholder("another numpy.dtype")

    def build(state: tuple) -> np.dtype:
        order, *rest = state[1:]
        # Fields, shapes and metadata are not None. Sizes of -1 and flags of 0 are those of numbers.
        plain = all(x is None or (type(x) is int and x in (-1, 0)) for x in rest)
        if type(order) is not str or order not in ("<", ">", "|") or not plain:
            raise ValueError(f"the dtype {code} has the state of another dtype")
        return np.dtype(order + code)

    return Builder("numpy.dtype", build)


def _numpy_array(state: tuple) -> np.ndarray | Placeholder:
    """Returns a view of the bytes in the state of an array, which must be as many as it needs."""
    _, shape, dtype, is_fortran, data = state
    if isinstance(dtype, Placeholder):
        return Placeholder(f"numpy.ndarray with {dtype.name}")
    if isinstance(data, Placeholder):  # Python 3 calls ``bytes`` for no bytes
        data = b""
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    valid = isinstance(dtype, np.dtype) and isinstance(data, bytes) and are_sizes(shape)
    if not valid or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("the bytes of an array do not fit its type and shape")
    return np.ndarray(shape, dtype, data, order="F" if is_fortran is True else "C")


def _numpy_reconstruct(kind: Any, *_) -> Placeholder:
    is_array = kind is _NUMPY_ARRAY  # not of a subclass
    return Builder("numpy.ndarray", _numpy_array) if is_array else Placeholder("a numpy array")


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    array = _numpy_array((1, (), dtype, False, data))
    return array if isinstance(array, Placeholder) else array[()]


def _encode(text: Any, encoding: Any) -> bytes:
    """Returns bytes, which Python 3 writes as text for the older protocols."""
    if type(text) is not str or type(encoding) is not str or encoding != "latin1":
        raise ValueError("bytes in another encoding than latin1")
    return text.encode("latin1")


_NUMPY_DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_NUMPY_ARRAY = Placeholder("numpy.ndarray")

GLOBALS = {
    ("collections", "OrderedDict"): _ordered_dict,
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
"""Maps (module, name) to what replaces it. Every other name is a ``Placeholder``."""
