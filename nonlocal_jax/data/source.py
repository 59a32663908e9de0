"""The interface of data sources, and their fingerprints."""

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from nonlocal_jax.errors import InputError

# Label of the pixels that are ignored in training and evaluation.
IGNORE_INDEX = 255

Example = Mapping[str, Any]


class Source(Protocol):
    """Random access to the examples of a dataset. Any object with these two methods is a source.

    An example is a mapping. For segmentation its fields are ``"image"`` (RGB, uint8 ``[H, W, 3]``),
    ``"label"`` (uint8 ``[H, W]``, class indices, 255 for ignored pixels) and ``"id"`` (str or int).
    For the classification of videos, they are ``"video"`` (see ``data.Video``), ``"label"`` (a
    class index, or a tuple of them) and ``"id"``. A source may also have a ``name`` and a
    ``dataset``. Its fingerprint includes the name. If ``dataset`` is a ``Dataset``, reports and
    checkpoints contain its classes.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def check_source(source: Any) -> None:
    """Requires random access to the examples.

    Raises:
      InputError: There is none, such as for a generator.
    """
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise InputError(
            f"the source is of type {type(source).__name__}, without len(source) and "
            "source[index]; use an object with both, such as a list of examples"
        )


def fingerprint(source: Source) -> str:
    """Returns a short hash of a source: its name, its length, its first, middle and last example.

    The hash of an example covers its id and all fields that are arrays, numbers or tuples, but not
    the frames of a video. The fingerprint is cheap to compute. It distinguishes datasets, but does
    not detect changes of other examples.
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
            elif isinstance(example[field], tuple):  # the classes of a video
                digest.update(repr(example[field]).encode())
    return digest.hexdigest()[:16]
