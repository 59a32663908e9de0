"""Damaged and hostile images, PNG and JPEG."""

import functools
import io
import random
import struct
import zlib
from collections.abc import Mapping

import numpy as np
import PIL.Image

from nonlocal_jax import data
from nonlocal_jax.data.images import decode_image

CASES = 4_200
SUFFIX = ".img"

_EXTREMES = 0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1


def read(path: str) -> None:
    """Reads an image as the commands do. Raises an ``InputError`` and nothing else."""
    image = data.read_image(path, upright=True)
    assert image.dtype == np.uint8
    assert image.ndim == 3


def warm_up() -> None:
    """Loads the decoders."""
    for image in whole().values():
        decode_image(image, "image")


@functools.cache
def whole() -> Mapping[str, bytes]:
    """Returns complete images of all types, by name."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3)).astype(np.uint8)
    image = PIL.Image.fromarray(pixels).resize((44, 36))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    files = {}

    def save(name: str, picture: PIL.Image.Image, kind: str, **options: object) -> None:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        files[name] = file.getvalue()

    for mode in ("RGB", "L", "P", "1", "LA", "RGBA", "I;16"):
        picture = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
        save(f"png {mode}", picture, "PNG")
    save("png exif", image, "PNG", exif=exif)
    save("png animated", image, "PNG", save_all=True, append_images=[image.rotate(90)])
    save("png profile", image, "PNG", icc_profile=b"\0" * 200)
    for mode in ("RGB", "L", "CMYK"):
        save(f"jpeg {mode}", image.convert(mode), "JPEG")
    save("jpeg exif", image, "JPEG", exif=exif)
    save("jpeg progressive", image, "JPEG", progressive=True)
    save("jpeg restarts", image, "JPEG", restart_marker_blocks=2)
    return files


def hostile() -> dict[str, bytes]:
    """Returns files that claim more than they contain, and files that are something else."""
    png, jpeg = whole()["png RGB"], whole()["jpeg RGB"]
    header = struct.pack(">II", 100_000, 100_000) + png[24:29]
    size = jpeg.index(b"\xff\xc0") + 5
    large = struct.pack(">HH", 32_000, 32_000)
    progressive = whole()["jpeg progressive"]
    start = progressive.index(b"\xff\xc2") + 5
    scan = jpeg.index(b"\xff\xda") + 40
    small = jpeg[size - 5 : size] + struct.pack(">HH", 8, 8) + jpeg[size + 4 : size + 14]
    return {
        "empty": b"",
        "html": b"<!DOCTYPE html><html></html>",
        "png of 10,000 megapixels": png[:16]
        + header
        + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        + png[33:],
        "png with a chunk of 2 GiB": png[:33] + struct.pack(">I", 2**31 - 1) + png[37:],
        "jpeg of 1,024 megapixels": jpeg[:size] + large + jpeg[size + 4 :],
        "progressive jpeg of 1,024 megapixels": progressive[:start]
        + large
        + progressive[start + 4 :],
        "jpeg with an end in its middle": jpeg[:scan] + b"\xff\xd9",
        "jpeg that ends in zeros": jpeg[:scan] + bytes(1000),
        "bmp of 900 megapixels": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 58, 0, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0)
        + bytes(4),
        "jpeg with a size behind a zero marker": b"\xff\xd8\xff\0"
        + struct.pack(">H", len(jpeg))
        + jpeg[2:-2]
        + small
        + b"\xff\xd9",
        "jpeg of padding": b"\xff\xd8" + b"\xff" * 1_000_000,
        "jpeg of empty segments": b"\xff\xd8" + b"\xff\xe0\0\2" * 250_000,
        "jpeg of segments of length 0": b"\xff\xd8" + b"\xff\xe0\0\0" * 250_000,
    }


def random_one(rng: random.Random) -> bytes:
    """Returns an image with random damage."""
    image = bytearray(rng.choice(list(whole().values())))
    kind = rng.randrange(6)
    at = rng.randrange(len(image))
    if kind == 0:
        del image[at:]
    elif kind == 1:  # a cut JPEG, whose end was repaired
        image[at:] = b"\xff\xd9"
    elif kind == 2:
        image[at:] = bytes(len(image) - at)
    elif kind == 3:
        del image[at : at + rng.randint(1, 200)]
    elif kind == 4:  # headers are in front
        value = struct.pack(rng.choice((">I", "<I", ">Q")), rng.choice(_EXTREMES))
        at = rng.randrange(200)
        image[at : at + 4] = value[-4:]
    else:
        for _ in range(rng.randint(1, 8)):
            image[rng.randrange(len(image))] ^= 1 << rng.randrange(8)
    return bytes(image)
