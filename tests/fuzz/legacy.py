"""Files of PyTorch before 1.6: five pickles, then the storages."""

import functools
import pathlib
import pickle
import random
import struct
from collections.abc import Mapping

import numpy as np

from tests.fuzz import models, mutations, pickles

_GOLDEN = pathlib.Path(__file__).parent.parent / "convert" / "golden"
_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03." + b"\x80\x02}."


def _file(content: bytes, keys: bytes, *storages: tuple[int, bytes]) -> bytes:
    stored = (struct.pack("<Q", numel) + data for numel, data in storages)
    return b"".join((_HEAD, content, keys, *stored))


@functools.cache
def _model() -> tuple[bytes, bytes, tuple[tuple[int, bytes], ...]]:
    arrays = models.pytorch_arrays()
    keys = pickle.dumps([str(i) for i in range(len(arrays))], 2)
    storages = tuple((a.size, np.ascontiguousarray(a).tobytes()) for a in arrays.values())
    return pickles.torch_pickle(arrays), keys, storages


def random_one(rng: random.Random) -> bytes:
    """A damaged file, or one of whose parts is damaged."""
    content, keys, storages = _model()
    kind = rng.randrange(4)
    if kind == 0:
        return mutations.damage(rng, (_GOLDEN / "legacy.pth").read_bytes())
    if kind == 1:
        content = mutations.damage(rng, content)
    elif kind == 2:
        keys = mutations.damage(rng, keys)
    else:
        at = rng.randrange(len(storages))
        numel = rng.choice((0, 1, storages[at][0] + 1, 2**31, 2**61, 2**62, 2**63, 2**64 - 1))
        changed = (numel, storages[at][1][: rng.randrange(1000)])
        storages = (*storages[:at], changed, *storages[at + 1 :])
    data = _file(content, keys, *storages)
    return mutations.damage(rng, data) if rng.random() < 0.1 else data


def hostile() -> Mapping[str, bytes]:
    """Files that were written to break a reader, by name."""
    content = b"\x80\x02}" + pickles.text("a.weight") + pickles.tensor() + b"s."
    storage = (24, bytes(96))
    keys = {
        "a bomb": b"]" + pickles.BOMB + b"a",
        "a bomb instead of": pickles.BOMB,
        "a nest": b"]" + pickles.NEST + b"a",
        "a million": b"](" + pickles.text("0") * 1_000_000 + b"e",
        "an integer": b"]K\x00a",
        "another storage's": b"]" + pickles.text("1") + b"a",
        "none": b"]",
        "no": b"N",
        "itself in": b"]\x94h\0a",
    }
    cases = {
        f"{what} key": _file(content, b"\x80\x04" + body + b".", storage)
        for what, body in keys.items()
    }
    one = b"\x80\x02]" + pickles.text("0") + b"a."
    for numel in (0, 1, 25, 2**31, 2**62, 2**63, 2**64 - 1):
        cases[f"a storage of {numel} numbers"] = _file(content, one, (numel, bytes(96)))
    cases["no storages"] = _file(content, one)
    for at, what in enumerate(("magic", "protocol", "sizes", "content")):
        for name, value in (("a bomb", pickles.BOMB), ("a nest", pickles.NEST)):
            parts = [*(part + b"." for part in _HEAD.split(b".")[:-1]), content]
            parts[at] = b"\x80\x02" + value + b"."
            cases[f"{name} as {what}"] = b"".join(parts) + one + struct.pack("<Q", 24) + bytes(96)
    return cases | {
        f"content: {name}": _file(data, one, storage)
        for name, data in pickles.hostile().items()
        if "storage" in name or "tensor" in name
    }
