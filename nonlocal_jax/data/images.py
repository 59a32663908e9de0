"""Reads, writes and resizes images."""

import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from etils import epath

from nonlocal_jax._files import PathLike, as_path, write_file
from nonlocal_jax.errors import InputError

SUFFIXES = (".jpeg", ".jpg", ".png")

# Rows and columns of an image.
Window = tuple[slice, slice]


def decode_image(data: bytes, name: object) -> np.ndarray:
    """Decodes a PNG or JPEG to RGB, uint8 ``[H, W, 3]``.

    Gray images and palettes are converted to RGB, and 16 bits to 8. An alpha channel is dropped.
    The EXIF orientation is ignored, as in the training data of the published models.

    Raises:
      InputError: The image is damaged. The message calls it ``name``.
    """
    return _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, name)


def decode_label(data: bytes, name: object) -> np.ndarray:
    """Decodes a gray PNG of class indices, uint8 ``[H, W]``, without any conversion.

    Raises:
      InputError: The image is damaged. The message calls it ``name``.
    """
    return _decode(data, cv2.IMREAD_UNCHANGED, name)


def _decode(data: bytes, flags: int, name: object) -> np.ndarray:
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # empty, or too many pixels
        array = None
    if array is None:
        raise InputError(
            f"{name} is not a complete PNG or JPEG image ({len(data)} bytes); replace the file"
        )
    return array


def read_image(path: PathLike) -> np.ndarray:
    """Reads a PNG or JPEG file as RGB, uint8 ``[H, W, 3]``.

    Gray images and palettes are converted to RGB, and 16 bits to 8. An alpha channel is dropped.
    The EXIF orientation is ignored.

    Raises:
      InputError: The file cannot be read, or it is damaged.
    """
    try:
        data = as_path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; check the path and its permissions"
        ) from error
    return decode_image(data, path)


def list_images(paths: Iterable[PathLike]) -> list[epath.Path]:
    """Replaces each directory with the PNG and JPEG files in it, sorted by name. Files are kept.

    Raises:
      InputError: A path does not exist, or a directory contains no PNG or JPEG file.
    """
    return list_files(paths, SUFFIXES, "images")


def list_files(paths: Iterable[PathLike], suffixes: Sequence[str], kind: str) -> list[epath.Path]:
    """Replaces each directory with its files of these suffixes, see ``list_images``."""
    files = []
    for path in map(as_path, paths):
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
            if not found:
                raise InputError(
                    f"the directory {path} has no {' or '.join(suffixes)} file; "
                    f"use a directory of {kind}"
                )
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"cannot read {path}: no such file or directory; check the path")
    return files


def encode_png(array: np.ndarray) -> bytes:
    """Encodes a gray ``[H, W]`` or RGB ``[H, W, 3]`` uint8 image as PNG.

    Raises:
      InputError: The shape or the type is wrong.
    """
    if array.dtype != np.uint8 or array.ndim < 2 or array.shape[2:] not in ((), (3,)):
        raise InputError(
            f"the image is {array.dtype} {array.shape}; use uint8 gray [H, W] or RGB [H, W, 3]"
        )
    return cv2.imencode(".png", array[..., ::-1] if array.ndim == 3 else array)[1].tobytes()


def write_png(path: PathLike, array: np.ndarray) -> None:
    """Writes a gray ``[H, W]`` or RGB ``[H, W, 3]`` uint8 image as PNG, atomically."""
    write_file(path, encode_png(array))


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image to ``size``, (height, width), with OpenCV's bilinear interpolation."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_window(image: np.ndarray, size: tuple[int, int], window: Window) -> np.ndarray:
    """Returns ``resize_image(image, size)[window]``, bit for bit, in less time.

    OpenCV resizes a part of an image by the factors of the whole if the part starts in the corner.
    So the part from there to the end of the window is resized.
    """
    if size == image.shape[:2]:
        return image[window]
    fy, fx = (n / extent for n, extent in zip(size, image.shape, strict=False))
    # The interpolation of the last row and column reads one more pixel.
    bottom, right = (math.ceil(part.stop / f) + 2 for part, f in zip(window, (fy, fx), strict=True))
    part = image[:bottom, :right]
    resized = cv2.resize(part, None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
    if resized.shape == part.shape:  # OpenCV copied the part instead
        resized = resize_image(image, size)
    return resized[window]


def resize_label_window(label: np.ndarray, size: tuple[int, int], window: Window) -> np.ndarray:
    """Returns a window of the label map resized to ``size``, with nearest neighbors.

    Row i of the resized map is row floor(i H / h) of the map, as in OpenCV, for H rows resized to
    h. Columns are chosen in the same way.
    """
    if size == label.shape:
        return label[window]
    rows, columns = (
        # The order of the operations is that of OpenCV.
        np.floor(np.arange(part.start, part.stop) * (1 / (n / extent))).astype(int)
        for part, n, extent in zip(window, size, label.shape, strict=True)
    )
    rows, columns = np.minimum(rows, label.shape[0] - 1), np.minimum(columns, label.shape[1] - 1)
    return label.take(rows, axis=0).take(columns, axis=1)


def keep_ratio_size(image_size: tuple[int, int], base_size: tuple[int, int]) -> tuple[int, int]:
    """Returns the largest size with the image's aspect ratio that fits ``base_size``, as in mmcv.

    The longer side of the image is compared with the longer side of ``base_size``, and the shorter
    with the shorter, so the order of ``base_size`` does not matter::

        f = min(max(base) / max(h, w), min(base) / min(h, w))
        size = (int(h f + 1/2), int(w f + 1/2))

    Args:
      image_size: (height, width) of the image, (h, w) in the formula.
      base_size: The two sides to fit the image into.

    Returns:
      (height, width).
    """
    factor = min(max(base_size) / max(image_size), min(base_size) / min(image_size))
    return tuple(max(1, int(n * factor + 0.5)) for n in image_size)
