"""Reads, writes and resizes images."""

import io
import math
import re
import struct
import sys
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import PIL.Image
from etils import epath
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from nonlocal_jax._files import PathLike, check_is_file, local_path, write_file
from nonlocal_jax.data._decoder_messages import decoder_messages
from nonlocal_jax.errors import InputError, listing

SUFFIXES = (".jpeg", ".jpg", ".png")
# Images with more pixels are refused, unless a caller allows them.
MAX_MEGAPIXELS = 128

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# The markers of a JPEG that are followed by its size, those that are followed by no length,
# as in libjpeg, and those that no size follows: the start of the pixels and the end.
_SIZE_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PADDING = re.compile(rb"\xff+")
_BARE_MARKERS = {0x00, 0x01, *range(0xD0, 0xD8)}
_LAST_MARKERS = {0xD9, 0xDA}
# What the decoder of JPEG says of bytes that are no part of the image. Other messages are damage.
_HARMLESS = "extraneous bytes before marker"

# How files of other formats begin, and what they are.
_OTHER_FORMATS = (
    (rb"(?s).{4}ftyp(hei|hev|mif|msf)", "a HEIC image"),
    (rb"(?s).{4}ftypavi", "an AVIF image"),
    (rb"(?s)RIFF.{4}WEBP", "a WebP image"),
    (rb"GIF8", "a GIF image"),
    (rb"II\*\0|MM\0\*", "a TIFF image"),
    (rb"BM.{4}\0\0\0\0", "a BMP image"),
    (rb"(?i)\s*<(!doctype html|html|head|body)", "an HTML page"),
)

# Rows and columns of an image.
Window = tuple[slice, slice]


def decode_image(
    data: bytes, name: object, *, upright: bool = False, max_megapixels: float = MAX_MEGAPIXELS
) -> np.ndarray:
    """Decodes a PNG or JPEG to RGB, uint8 ``[H, W, 3]``.

    Gray images and palettes are converted to RGB, and 16 bits to 8. An alpha channel is dropped.

    Args:
      data: The content of the file.
      name: What messages call the image.
      upright: Whether to rotate the image as its EXIF orientation says, as other programs show
        it. The training data of the published models ignore it.
      max_megapixels: The largest image that is decoded. Its size is read from its header first.

    Raises:
      InputError: The image is damaged or too large.
    """
    orientation = 0 if upright else cv2.IMREAD_IGNORE_ORIENTATION
    return _decode(data, cv2.IMREAD_COLOR_RGB | orientation, name, max_megapixels)


def decode_label(data: bytes, name: object) -> np.ndarray:
    """Decodes a gray PNG, or one with a palette, to class indices, uint8 ``[H, W]``.

    Raises:
      InputError: The image is damaged or too large, or it is no map of class indices.
    """
    array = _decode(data, cv2.IMREAD_UNCHANGED, name)
    if data[25:26] == b"\x03":  # OpenCV converts a palette to colors
        try:
            array = np.array(open_with_pil(data))
        except Exception as error:  # PIL raises errors of many types if data is damaged
            raise InputError(f"{name} is damaged ({error}); replace the file") from error
    if array.dtype != np.uint8 or array.ndim != 2:
        raise InputError(
            f"{name} is {array.dtype} {array.shape}; use a PNG with a palette or 8-bit gray, whose "
            "values are class indices"
        )
    return array


def open_with_pil(data: bytes) -> PIL.Image.Image:
    """Decodes a PNG or JPEG with PIL. Call ``check_header`` before.

    ``PIL.Image.open`` would also warn of images that are smaller than the limit of this module.
    """
    plugin = PngImageFile if data.startswith(_PNG) else JpegImageFile
    image = plugin(io.BytesIO(data))
    image.load()
    return image


def check_header(data: bytes, name: object, max_megapixels: float = MAX_MEGAPIXELS) -> None:
    """Requires a PNG or JPEG whose header claims at most so many pixels. Nothing is decoded.

    Raises:
      InputError: The data is something else, the image is too large, or a JPEG has no end.
    """
    header = _read_header(data)
    if header is None:
        for pattern, what in _OTHER_FORMATS:
            if re.match(pattern, data):
                raise InputError(f"{name} is {what}; export or convert it to JPEG or PNG")
        raise InputError(
            f"{name} is damaged or not a PNG or JPEG image ({len(data):,} bytes); replace or "
            "convert the file"
        )
    width, height, position = header
    if width * height > max_megapixels * 1e6:
        raise InputError(
            f"{name} has {width}x{height} pixels, more than the limit of {max_megapixels:g} "
            "megapixels; make the image smaller, or cut it into parts"
        )
    # OpenCV also decodes a JPEG whose last part is zeros, and allocates all that a PNG claims.
    complete = _ends(data) if data.startswith(_PNG) else data.rfind(_JPEG_END) > position
    if not complete:
        raise _incomplete(data, name)


def _read_header(data: bytes) -> tuple[int, int, int] | None:
    """Returns the width and the height of a PNG or JPEG, and their position in the file."""
    if data.startswith(_PNG) and len(data) >= 24:
        return *struct.unpack(">II", data[16:24]), 16
    if not data.startswith(_JPEG):
        return None
    position = 2
    # The header is a list of segments: 0xFF, a marker, the length, and the content.
    while (position := data.find(b"\xff", position)) != -1 and position + 9 <= len(data):
        marker = data[position + 1]
        if marker in _SIZE_MARKERS:
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            return width, height, position
        if marker in _LAST_MARKERS:
            return None
        if marker == 0xFF:  # padding
            position = _PADDING.match(data, position).end() - 1
        elif marker in _BARE_MARKERS:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _ends(data: bytes) -> bool:
    """Returns whether all chunks of a PNG are there, up to the last one."""
    position = len(_PNG)
    while position + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        position += 12 + length
        if kind == b"IEND":
            return position <= len(data)
    return False


def _incomplete(data: bytes, name: object) -> InputError:
    return InputError(
        f"{name} is not a complete PNG or JPEG image ({len(data):,} bytes); replace the file"
    )


def _decode(
    data: bytes, flags: int, name: object, max_megapixels: float = MAX_MEGAPIXELS
) -> np.ndarray:
    check_header(data, name, max_megapixels)
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(f"{name}: {error.err}") from error
        raise _incomplete(data, name) from error
    if array is None:
        raise _incomplete(data, name)
    return array


def damage(messages: Iterable[str]) -> str | None:
    """Returns the first message of a decoder that reports damage, see ``decoder_messages``.

    The decoder of JPEG fills what is missing with gray, and only prints a message.
    """
    starts = "Corrupt JPEG", "Premature end"
    return next((m for m in messages if m.startswith(starts) and _HARMLESS not in m), None)


def read_image(
    path: PathLike, *, upright: bool = False, max_megapixels: float = MAX_MEGAPIXELS
) -> np.ndarray:
    """Reads a PNG or JPEG file as RGB, uint8 ``[H, W, 3]``, see ``decode_image``.

    Images are read one at a time, also in several threads. Warnings of the decoder are printed with
    the path.

    Raises:
      InputError: The file cannot be read, it is damaged, or the image is too large.
    """
    check_is_file(local_path(path))
    try:
        data = local_path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; check the path and its permissions"
        ) from error
    with decoder_messages() as messages:
        image = decode_image(data, path, upright=upright, max_megapixels=max_megapixels)
    if reason := damage(messages):
        raise InputError(f"{path} is damaged or was cut short ({reason}); replace the file")
    for message in messages:
        print(f"warning: {path}: {message}", file=sys.stderr)
    return image


def list_images(paths: Iterable[PathLike]) -> list[epath.Path]:
    """Replaces each directory with the PNG and JPEG files in it, sorted by name. Files are kept.

    Raises:
      InputError: A path does not exist, it is a pipe or a device, or a directory contains no PNG
        or JPEG file.
    """
    return list_files(paths, SUFFIXES, "images")


def list_files(paths: Iterable[PathLike], suffixes: Sequence[str], kind: str) -> list[epath.Path]:
    """Replaces each directory with its files of these suffixes, see ``list_images``.

    What is skipped is printed on stderr, except hidden files.
    """
    files = []
    for path in map(local_path, paths):
        if path.is_dir():
            entries = sorted(path.iterdir())
            found = [p for p in entries if p.suffix.lower() in suffixes]
            others = [p.name for p in entries if p not in found and not p.name.startswith(".")]
            if not found:
                only = f", only{listing(others)}\n" if others else "; "
                raise InputError(
                    f"the directory {path} has no {' or '.join(suffixes)} file{only}"
                    f"use a directory of {kind}, and convert other formats"
                )
            if others:
                print(
                    f"warning: only {', '.join(suffixes)} files are read; skipped in {path}:"
                    f"{listing(others)}",
                    file=sys.stderr,
                )
            files += found
        else:
            check_is_file(path)
            files.append(path)
    return files


def encode_png(array: np.ndarray, palette: Sequence[Sequence[int]] | None = None) -> bytes:
    """Encodes a gray ``[H, W]`` or RGB ``[H, W, 3]`` uint8 image as PNG.

    Args:
      array: The image, or indices into the palette ``[H, W]``.
      palette: RGB colors from 0 to 255. Other programs show them, and ``decode_label`` returns the
        indices.

    Raises:
      InputError: The shape or the type is wrong.
    """
    if array.dtype != np.uint8 or array.ndim < 2 or array.shape[2:] not in ((), (3,)):
        raise InputError(
            f"the image is {array.dtype} {array.shape}; use uint8 gray [H, W] or RGB [H, W, 3]"
        )
    if palette is None:
        return cv2.imencode(".png", array[..., ::-1] if array.ndim == 3 else array)[1].tobytes()
    image = PIL.Image.fromarray(array)
    image.putpalette(np.asarray(palette, np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", bits=8)
    return file.getvalue()


def write_png(
    path: PathLike, array: np.ndarray, palette: Sequence[Sequence[int]] | None = None
) -> None:
    """Writes an image as PNG, atomically, see ``encode_png``."""
    write_file(path, encode_png(array, palette))


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
