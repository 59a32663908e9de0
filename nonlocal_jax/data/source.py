"""Random access to examples."""

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

Example = Mapping[str, Any]


class Source(Protocol):
    """Random access to the examples of a dataset: any object with these two methods.

    An example is a mapping. For segmentation its fields are ``"image"`` (RGB, uint8 ``[H, W, 3]``),
    ``"label"`` (uint8 ``[H, W]``, class indices, 255 for ignored pixels) and ``"id"`` (str or int).
    A source may also have a ``name``, which becomes a part of its fingerprint.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def fingerprint(source: Source) -> str:
    """A short hash of a source: its name, its length and its first, middle and last example.

    It is cheap, so it distinguishes datasets, but does not see a change of any other example. The
    id and all fields that are arrays or numbers are hashed.
    """
    digest = hashlib.sha256(f"{getattr(source, 'name', '')} {len(source)}".encode())
    for index in sorted({0, len(source) // 2, len(source) - 1} if len(source) else ()):
        example = source[index]
        digest.update(repr(example.get("id")).encode())
        for field in sorted(example.keys() - {"id"}):
            if isinstance(example[field], np.ndarray | np.generic | int | float):
                array = np.ascontiguousarray(example[field])
                digest.update(f"{array.dtype} {array.shape}".encode())
                digest.update(array)
    return digest.hexdigest()[:16]
