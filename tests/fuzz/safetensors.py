"""Files of safetensors: damaged ones, and some that were written to break a reader."""

import functools
import json
import random
import struct
from collections.abc import Mapping
from typing import Any

from tests.fuzz import models, mutations

# Values of the wrong type, in place of any part of the header and the metadata.
_VALUES = (
    *(None, True, 0, -1, 1.5, 2**63, 2**200, float("nan"), "", "a", "\x1b[31m\u202e", "a" * 5000),
    *([], [[]], {}, [1, "a"], ["network", "block"], {"a": {"b": []}}, [[1, 2], ["a", 3]]),
    *(["nonlocal"], {"nonlocal": 1}, [None] * 5000),
)


def _file(header: Any, data: bytes) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


@functools.cache
def _model() -> tuple[str, bytes]:
    whole = models.written(".safetensors")
    (size,) = struct.unpack("<Q", whole[:8])
    return whole[8 : 8 + size].decode(), whole[8 + size :]


def _with_metadata(**values: Any) -> bytes:
    header, data = _model()
    header = json.loads(header)
    header["__metadata__"] |= values
    return _file(header, data)


def _change(rng: random.Random, value: Any) -> Any:
    """Returns a copy of JSON with a wrong value in it."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(keys)
        copy = value.copy()
        if rng.random() < 0.1:
            copy.pop(key)
        else:
            copy[key] = _change(rng, value[key])
        return copy
    return rng.choice(_VALUES)


def random_one(rng: random.Random) -> bytes:
    """A damaged file, or one with a wrong value in its header or its metadata."""
    header, data = _model()
    kind = rng.randrange(3)
    if kind == 0:
        return mutations.damage(rng, models.written(".safetensors"))
    if kind == 1:
        return _file(_change(rng, json.loads(header)), data)
    config = _change(rng, json.loads(json.loads(header)["__metadata__"]["model_config"]))
    dataset = {"name": "a", "classes": ["a", "b", "c"], "palette": [[0, 0, 0]] * 3}
    return _with_metadata(
        model_config=json.dumps(config), dataset=json.dumps(_change(rng, dataset))
    )


def hostile() -> Mapping[str, bytes]:
    """Files that were written to break a reader, by name."""
    config = json.loads(json.loads(_model()[0])["__metadata__"]["model_config"])
    cases = {}
    for i, value in enumerate(_VALUES):
        cases[f"model config {i}"] = _with_metadata(model_config=json.dumps(value))
        cases[f"dataset {i}"] = _with_metadata(dataset=json.dumps(value))
        cases[f"metadata {i}"] = _with_metadata(model_config=value)
        for option in ("network", "block", "num_classes", "block_at", "block_sub_sample", "\x1b"):
            changed = json.dumps(config | {option: value})
            cases[f"{option} {i}"] = _with_metadata(model_config=changed)
    deep = {f"{n:,} levels": "[" * n + "]" * n for n in (500, 900, 5_000, 500_000)}
    for what, text in deep.items():
        cases[f"model config of {what}"] = _with_metadata(model_config=text)
        cases[f"dataset of {what}"] = _with_metadata(dataset=text)
        cases[f"option of {what}"] = _with_metadata(model_config=f'{{"a": {text}}}')
        cases[f"header of {what}"] = _file(text.encode(), b"")
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    long = {f"backbone.layer1.{'9' * n}.conv1.conv.weight": entry for n in (10, 400, 5000)}
    cases |= {
        "long numbers in names": _file(long, b""),
        "strange names": _file({"\x1b[31m\n\u202e\0": entry, "": entry, "params/\n": entry}, b""),
        "many names": _file({f"backbone.layer1.{i}.bn1.bias": entry for i in range(100_000)}, b""),
        "much metadata": _file({"__metadata__": {str(i): "" for i in range(1_000_000)}}, b""),
        "a long list in metadata": _with_metadata(dataset="[" + "[]," * 3_000_000 + "[]]"),
        "a huge header": struct.pack("<Q", 2**63) + b"{}",
        "a long header": struct.pack("<Q", 99_000_000) + b"{}" + b" " * 98_999_998,
        "a number of a million digits": _with_metadata(model_config=f'{{"a": {"1" * 1_000_000}}}'),
        "a huge shape": _file(
            {"a": {"dtype": "F32", "shape": [2**62, 0, 2**62], "data_offsets": [0, 0]}}, b""
        ),
        "overlapping arrays": _file(
            {
                f"a{i}": {"dtype": "F32", "shape": [1_000_000], "data_offsets": [0, 4_000_000]}
                for i in range(1000)
            },
            bytes(4_000_000),
        ),
    }
    return cases
