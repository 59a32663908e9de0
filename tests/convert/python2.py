"""Pickles as Python 2 with an older NumPy wrote them."""

import io
import pickle
from typing import ClassVar

import numpy as np


class _Pickler(pickle._Pickler):
    """Writes text and bytes as the one string type of Python 2."""

    def _save_string(self, obj):
        data = obj if isinstance(obj, bytes) else obj.encode("ascii")
        if not self.bin:
            # repr of Python 2, which has no prefix
            self.write(pickle.STRING + repr(data).encode("ascii")[1:] + b"\n")
        elif len(data) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        else:
            self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(obj)

    def save_global(self, obj, name=None):
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{obj.__name__}\n".encode())
        self.memoize(obj)

    dispatch: ClassVar[dict] = {
        **pickle._Pickler.dispatch,
        bytes: _save_string,
        str: _save_string,
        type: save_global,
        type(np.array): save_global,
        type(np.ravel): save_global,
    }


def dumps(obj, protocol):
    stream = io.BytesIO()
    _Pickler(stream, protocol).dump(obj)
    return stream.getvalue()
