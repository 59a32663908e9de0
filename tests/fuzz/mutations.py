"""Random damage to the bytes of a file."""

import random
import struct
from collections.abc import Callable

# Written over lengths, offsets and counts.
_EXTREMES = (
    *(struct.pack("<Q", n) for n in (0, 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)),
    *(struct.pack("<I", n) for n in (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)),
    *(struct.pack("<H", n) for n in (0, 1, 2**15, 2**16 - 1)),
    *(b"\x00", b"\x7f", b"\x80", b"\xff"),
)


def damage(
    rng: random.Random, data: bytes, piece: Callable[[random.Random], bytes] | None = None
) -> bytes:
    """Returns the data with one to four changes. ``piece`` draws what else may be inserted."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        # Headers are in front, so half of the changes are there.
        size = len(changed) if rng.random() < 0.5 else min(len(changed), 256)
        if size == 0:
            break
        at = rng.randrange(size)
        end = min(len(changed), at + rng.choice((1, 2, 4, 16, 256)))
        kind = rng.randrange(8)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.randrange(256)
        elif kind == 2:
            del changed[at:end]
        elif kind == 3:
            changed[at:at] = changed[at:end] * rng.randint(1, 4)
        elif kind == 4:
            extreme = rng.choice(_EXTREMES)
            changed[at : at + len(extreme)] = extreme
        elif kind == 5:
            source = rng.randrange(len(changed))
            changed[at:end] = changed[source : source + end - at]
        elif kind == 6 and rng.random() < 0.3:
            del changed[rng.randrange(len(changed)) :]
        elif piece is not None:
            changed[at:at] = piece(rng)
    return bytes(changed)
