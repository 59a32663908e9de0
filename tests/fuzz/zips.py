"""Zip files of PyTorch: damaged ones, and some that were written to break a reader."""

import functools
import pathlib
import random
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tests.fuzz import models, mutations, pickles

_GOLDEN = pathlib.Path(__file__).parent.parent / "convert" / "golden"


class Record(NamedTuple):
    """A record of a zip file. The fields that are None are those that fit.

    Attributes:
      name: The name.
      data: The content.
      offset: What the central directory says about where the record begins.
      size: What it says about the size.
      checksum: What it says about the checksum.
      flags: Bit 0 means encrypted.
      method: 0 means uncompressed.
      extra: The extra field in the central directory.
    """

    name: str
    data: bytes
    offset: int | None = None
    size: int | None = None
    checksum: int | None = None
    flags: int = 0
    method: int = 0
    extra: bytes = b""


def write(records: Sequence[Record], *, comment: bytes = b"", directory: int = 1) -> bytes:
    """Returns a zip file, in which the central directory lists the records so many times."""
    content, entries = bytearray(), bytearray()
    for name, data, offset, size, checksum, flags, method, extra in records:
        encoded = name.encode()
        found = [len(content), len(data), zlib.crc32(data)]
        given = [offset, size, checksum]
        begin, length, crc = (f if g is None else g for f, g in zip(found, given, strict=True))
        content += b"PK\x03\x04" + struct.pack(
            "<5H3I2H", 20, flags, method, 0, 0, crc, length, length, len(encoded), 0
        )
        content += encoded + data
        entries += b"PK\x01\x02" + struct.pack(
            "<6H3I5H2I",
            *(20, 20, flags, method, 0, 0, crc, length, length, len(encoded), len(extra)),
            *(0, 0, 0, 0, begin),
        )
        entries += encoded + extra
    entries *= directory
    number = min(len(records) * directory, 2**16 - 1)
    end = struct.pack("<4H2IH", 0, 0, number, number, len(entries), len(content), len(comment))
    return bytes(content + entries + b"PK\x05\x06" + end + comment)


def archive(pickle: bytes, *storages: bytes, order: bytes = b"little") -> list[Record]:
    """The records of a file of PyTorch."""
    return [
        Record("archive/data.pkl", pickle),
        Record("archive/byteorder", order),
        *(Record(f"archive/data/{i}", data) for i, data in enumerate(storages)),
    ]


def _state_dict(count: int, numel: int, key: str = "{i}") -> bytes:
    """The pickle of so many tensors, one for each storage."""
    size = b"J" + struct.pack("<i", numel)
    items = (
        pickles.text(f"a{i}.weight")
        + pickles.tensor(pickles.storage(pickles.text(key.format(i=i)), size), shape=size + b"\x85")
        for i in range(count)
    )
    return b"\x80\x02}(" + b"".join(items) + b"u."


@functools.cache
def _model() -> tuple[bytes, tuple[bytes, ...]]:
    arrays = models.pytorch_arrays()
    stored = tuple(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    return pickles.torch_pickle(arrays), stored


def random_one(rng: random.Random) -> bytes:
    """A damaged file, one with a damaged pickle, or one with wrong fields."""
    pickle, storages = _model()
    kind = rng.randrange(4)
    if kind == 0:
        golden = (_GOLDEN / "zip.pth").read_bytes()
        return mutations.damage(rng, rng.choice((golden, models.written(".pth"))))
    if kind == 1:
        return write(archive(mutations.damage(rng, pickle), *storages))
    if kind == 2:
        order = rng.choice((b"little", b"big", b"", b"none"))
        if order == b"big":
            storages = tuple(np.frombuffer(s, "<u4").byteswap().tobytes() for s in storages)
        records = archive(pickle, *storages, order=order)
    else:
        records = archive(rng.choice(pickles.samples()), b"", bytes(96))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(records))
        other, size = rng.choice(records), rng.randrange(2 ** rng.randrange(1, 34))
        change = rng.choice(
            (
                {"offset": size % 2**32},
                {"size": size % 2**32},
                {"checksum": size % 2**32},
                {"flags": rng.randrange(2**16)},
                {"method": rng.choice((8, 12, 14, 99))},
                {"name": other.name},
                {"data": other.data},
                {"data": mutations.damage(rng, records[at].data)},
                {"extra": rng.randbytes(rng.randrange(40))},
                {"extra": struct.pack("<HH3Q", 1, 24, 2**62, 2**62, 2**63)},
            )
        )
        records[at] = records[at]._replace(**change)
    if rng.random() < 0.3:
        rng.shuffle(records)
    data = write(records, directory=rng.choice((1, 1, 1, 2)))
    return mutations.damage(rng, data[-4096:]) if rng.random() < 0.05 else data


def hostile() -> Mapping[str, bytes]:
    """Zip files that were written to break a reader, by name."""
    one = 4_000_000  # numbers in a storage
    data = archive(_state_dict(300, one), bytes(4 * one), order=b"big")
    start = sum(30 + len(r.name) + len(r.data) for r in data[:2])
    overlapping = [
        *data,
        *(Record(f"archive/data/{i}", b"", start, 4 * one, 0) for i in range(1, 300)),
    ]
    small = archive(_state_dict(1, 24), bytes(96))
    cases = {
        "overlapping records, big-endian": write(overlapping),
        "one record for many keys": write(archive(_state_dict(300, one, "0"), bytes(4 * one))),
        "one record for many keys, big-endian": write(
            archive(_state_dict(300, one, "0"), bytes(4 * one), order=b"big")
        ),
        "nested records": write(
            [*small, Record("archive/data/1", b"", 0, sum(30 + len(r.data) for r in small))]
        ),
        "two records of one name": write([*small, small[2]]),
        "two pickles of one name": write([small[0], *small]),
        "a name with a zero byte": write([*small, Record("archive/data/0\0x", bytes(96))]),
        "the list twice": write(small, directory=2),
        "an encrypted record": write([*small[:2], small[2]._replace(flags=1)]),
        "an encrypted pickle": write([small[0]._replace(flags=1), *small[1:]]),
        "a record beyond the end": write([*small[:2], small[2]._replace(size=2**31)]),
        "a record without a header": write([*small[:2], small[2]._replace(offset=1)]),
        "a record in the list of records": write([*small[:2], small[2]._replace(size=100)]),
        "no records": write([]),
        "many empty records": write(
            [*small, *(Record(f"archive/x/{i}", b"") for i in range(100_000))]
        ),
        "a long list of records": write(small, directory=60_000),
        "extra fields": write([r._replace(extra=b"\0\0\0\0" * 16_000) for r in small]),
        "a long comment": write(small, comment=b"PK\x05\x06" * 16_000),
        "in front of another": write(small)[:-22] + write(small),
        "a pickle in a storage": write(archive(pickles.torch_pickle({}), _state_dict(1, 24))),
        "names that escape": write(
            [
                Record("a\x1b[31m\u202e/data.pkl", small[0].data),
                Record("a\x1b[31m\u202e/data/0", bytes(92)),
            ]
        ),
        "two types of one storage": write(
            archive(_state_dict(2, 24, "0").replace(b"FloatStorage", b"IntStorage", 1), bytes(96))
        ),
        "more numbers than stored": write(archive(_state_dict(1, 25), bytes(96))),
    }
    return cases | {
        f"pickle of {name}": write(archive(data, bytes(96)))
        for name, data in pickles.hostile().items()
        if "storage" in name or "tensor" in name or "axes" in name
    }
