"""Images in and out of files, and OpenCV's resize."""

import pathlib
from collections.abc import Iterable

import cv2
import numpy as np

from nonlocal_jax._files import PathLike, write_file
from nonlocal_jax.errors import InputError

SUFFIXES = (".jpeg", ".jpg", ".png")


def decode_image(data: bytes, name: object) -> np.ndarray:
    """Decodes a PNG or JPEG to RGB, uint8 ``[H, W, 3]``.

    Gray levels and palettes become RGB, 16 bits become 8, an alpha channel is dropped. The
    orientation that EXIF may ask for is ignored, as in the published models' data.

    Raises:
      InputError: the bytes are no whole image; the message calls them ``name``.
    """
    return _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, name)


def decode_label(data: bytes, name: object) -> np.ndarray:
    """Decodes a gray PNG of class indices as it is, uint8 ``[H, W]``.

    Raises:
      InputError: the bytes are no whole image; the message calls them ``name``.
    """
    return _decode(data, cv2.IMREAD_UNCHANGED, name)


def _decode(data: bytes, flags: int, name: object) -> np.ndarray:
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # no bytes at all, or too many pixels
        array = None
    if array is None:
        raise InputError(f"{name} is not a whole PNG or JPEG image ({len(data)} bytes)")
    return array


def read_image(path: PathLike) -> np.ndarray:
    """Reads a PNG or JPEG file as RGB, uint8 ``[H, W, 3]``; see ``decode_image``.

    Raises:
      InputError: the file cannot be read or is no whole image.
    """
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return decode_image(data, path)


def list_images(paths: Iterable[PathLike]) -> list[pathlib.Path]:
    """Replaces each directory by the PNG and JPEG files in it, sorted by name; files stay.

    Raises:
      InputError: a path does not exist, or a directory holds no such file.
    """
    files = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                raise InputError(f"no {', '.join(SUFFIXES)} file in the directory {path}")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"no such file or directory: {path}")
    return files


def encode_png(array: np.ndarray) -> bytes:
    """Encodes gray ``[H, W]`` or RGB ``[H, W, 3]``, uint8, as PNG.

    Raises:
      InputError: another shape or type.
    """
    if array.dtype != np.uint8 or array.ndim < 2 or array.shape[2:] not in ((), (3,)):
        raise InputError(
            f"a PNG is made of uint8 [H, W] or [H, W, 3]; got {array.dtype} {array.shape}"
        )
    return cv2.imencode(".png", array[..., ::-1] if array.ndim == 3 else array)[1].tobytes()


def write_png(path: PathLike, array: np.ndarray) -> None:
    """Writes gray ``[H, W]`` or RGB ``[H, W, 3]``, uint8; the file appears whole or not at all."""
    write_file(path, encode_png(array))


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image to ``size``, (height, width), bilinearly as OpenCV does."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def keep_ratio_size(image_size: tuple[int, int], base_size: tuple[int, int]) -> tuple[int, int]:
    """The largest size with the image's proportions that fits into ``base_size``, as in mmcv.

    The longer side of the image is held against the longer of ``base_size``, the shorter against
    the shorter, so the order of ``base_size`` does not matter.

      f = min(max(base) / max(h, w), min(base) / min(h, w))
      size = (int(h f + 1/2), int(w f + 1/2))

    Args:
      image_size: (h, w).
      base_size: the two sides to fit into.

    Returns:
      The height and the width.
    """
    factor = min(max(base_size) / max(image_size), min(base_size) / min(image_size))
    return tuple(max(1, int(n * factor + 0.5)) for n in image_size)
