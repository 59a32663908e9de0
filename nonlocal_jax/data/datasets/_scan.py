"""Reads and checks the files of an example."""

import io
import struct
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from nonlocal_jax.data._decoder_messages import decoder_messages
from nonlocal_jax.data.datasets._layout import INVALID, File, Layout, Pair
from nonlocal_jax.data.images import (
    check_header,
    damage,
    decode_image,
    decode_label,
    encode_png,
    open_with_pil,
)
from nonlocal_jax.errors import InputError

_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112
_READ_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, KeyError, RuntimeError, EOFError)


class _FileError(Exception):
    """What is wrong with a file, and what to do."""


class Facts(NamedTuple):
    """What the files of an example contain.

    Attributes:
      problems: What is wrong with them, one line each.
      values: The values of the label file.
      size: Number of bytes that will be stored.
      notes: What the user should know, one line each.
    """

    problems: list[str]
    values: frozenset[int] = frozenset()
    size: int = 0
    notes: tuple[str, ...] = ()


def scan(pair: Pair, layout: Layout) -> Facts:
    """Reads both files of an example whole, and checks them."""
    problems, notes = [], []
    image_size = label_size = None
    values: frozenset[int] = frozenset()
    size = 0
    try:
        data = _read(pair.image)
        size += len(data)
        image_size, messages = _check_image(data, upright=layout.upright)
        notes += [f"{pair.image.name}: {message}" for message in messages]
    except _FileError as error:
        problems.append(f"{pair.image.name} {error}")
    try:
        data = _read(pair.label)
        size += len(data)
        label = _decode_label(data, pair.label)
        label_size = label.shape
        values = frozenset(np.flatnonzero(np.bincount(label.ravel(), minlength=256)).tolist())
        wrong = [value for value in sorted(values) if pair.table[value] == INVALID]
        if wrong:
            listed = ", ".join(map(str, wrong[:10])) + (", ..." if len(wrong) > 10 else "")
            problems.append(f"{pair.label.name} contains {listed}; {layout.advice}")
    except _FileError as error:
        problems.append(f"{pair.label.name} {error}")
    if image_size and label_size and image_size != label_size:
        problems.append(
            f"{pair.label.name} has {_text(label_size)} pixels, but {pair.image.name} has "
            f"{_text(image_size)}; use a label map of the size of its image"
        )
    return Facts(problems, values, size, tuple(notes))


def record(pair: Pair) -> dict[str, Any]:
    """Returns an example to store: the bytes of the image, and the label map as gray PNG.

    Raises:
      InputError: A file has changed since it was checked.
    """
    try:
        label = pair.table[_decode_label(_read(pair.label), pair.label)]
        image = _read(pair.image)
    except _FileError as error:
        raise InputError(f"{pair.id!r} has changed while it was read: {error}") from error
    if (label == INVALID).any():
        raise InputError(f"{pair.label.name} has changed while it was read; run the command again")
    height, width = label.shape
    return {
        "image": image,
        "label": encode_png(label.astype(np.uint8)),
        "id": pair.id,
        "height": height,
        "width": width,
    }


def _text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _read(file: File) -> bytes:
    try:
        return file.read()
    except _READ_ERRORS as error:
        reason = getattr(error, "strerror", None) or error
        raise _FileError(f"cannot be read ({reason}); check the file") from error


def _check_image(data: bytes, *, upright: bool) -> tuple[tuple[int, int], list[str]]:
    """Returns the (height, width) of a complete PNG or JPEG image, and warnings of its decoder."""
    with _open(data) as image:
        orientation = image.getexif().get(_ORIENTATION, 1) if upright else 1
    if orientation != 1:
        raise _FileError(
            f"has the EXIF orientation {orientation}, which most programs apply, but training "
            "ignores; rotate its pixels and remove the tag, for example with the script in "
            "docs/datasets.md"
        )
    try:
        with decoder_messages() as messages:
            size = decode_image(data, "the image").shape[:2]
    except InputError as error:
        raise _damaged(data, "OpenCV cannot decode it") from error
    if reason := damage(messages):
        raise _damaged(data, reason)
    return size, messages


def _open(data: bytes) -> PIL.Image.Image:
    """Decodes an image with PIL. The callers also use OpenCV, which finds other damage."""
    try:
        check_header(data, "the image")
    except InputError as error:
        raise _FileError(str(error).removeprefix("the image ")) from error
    try:
        return open_with_pil(data)
    except SyntaxError as error:
        raise _FileError(
            f"is damaged or not a PNG or JPEG image ({len(data):,} bytes); replace or convert the "
            "file"
        ) from error
    except Exception as error:  # PIL raises errors of many types if data is damaged
        raise _damaged(data, error) from error


def _damaged(data: bytes, reason: object) -> _FileError:
    return _FileError(f"is damaged ({reason}, {len(data):,} bytes); replace the file")


def _decode_label(data: bytes, file: File) -> np.ndarray:
    """Returns the values of a label file, uint8 ``[H, W]``."""
    return _decode_mat(data) if file.name.endswith(".mat") else _decode_mask(data)


def _decode_mask(data: bytes) -> np.ndarray:
    """Returns the values of a gray PNG, or the indices of a palette PNG."""
    if not data.startswith(_PNG) or len(data) < 26:
        if data.startswith(b"\xff\xd8"):
            raise _FileError("is a JPEG image, which changes the values; save the mask as PNG")
        raise _damaged(data, "not a PNG image")
    depth, color = struct.unpack("BB", data[24:26])
    if color not in (0, 3) or depth > 8:
        kind = {2: "RGB", 4: "gray with alpha", 6: "RGBA"}.get(color, "gray")
        raise _FileError(
            f"is a PNG of the type {kind} with {depth} bits; save it as a PNG with a palette or "
            "8-bit gray without alpha, whose values stand for the classes, for example with the "
            "script in docs/datasets.md"
        )
    with _open(data) as image:
        values = np.array(image).astype(np.uint8)
    try:
        with decoder_messages():
            decode_label(data, "the mask")  # checks the checksums
    except InputError as error:
        raise _damaged(data, "OpenCV cannot decode it") from error
    # PIL scales gray values of 2 and 4 bits to 8 bits.
    return values // {2: 85, 4: 17}.get(depth, 1) if color == 0 else values


def _decode_mat(data: bytes) -> np.ndarray:
    """Returns the label map of a ``cls/*.mat`` file of the Semantic Boundaries Dataset."""
    from scipy.io import loadmat

    try:
        values = loadmat(io.BytesIO(data))["GTcls"][0, 0]["Segmentation"]
    except Exception as error:  # scipy raises errors of many types if data is damaged
        raise _damaged(data, f"{type(error).__name__}: {error}") from error
    if values.dtype != np.uint8 or values.ndim != 2:
        raise _FileError(f"contains {values.dtype} {values.shape}; use the files of cls/")
    return values
