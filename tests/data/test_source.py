import numpy as np
import pytest

from nonlocal_jax import data
from nonlocal_jax.data.source import check_source
from nonlocal_jax.errors import InputError


def example(**changes):
    fields = {
        "image": np.zeros((4, 6, 3), np.uint8),
        "label": np.array([[0, 1, 2, 18, 255, 0]] * 4, np.uint8),
        "id": "street_7",
    }
    return fields | changes


class Named(list):
    name = "mine"


def test_a_source_has_random_access():
    check_source(Named([example()]))
    for source in (iter([example()]), {1, 2}, None):
        with pytest.raises(InputError, match=r"without len\(source\) and source\[index\]; use an"):
            check_source(source)


def test_fingerprints_distinguish_sources(data_dir):
    train, val = (data.load_source("digits_flag", split, data_dir) for split in ("train", "val"))
    prints = [
        data.fingerprint(source)
        for source in (
            train,
            val,
            [example()],
            [example(), example()],
            [example(id="street_8")],
            [example(image=np.ones((4, 6, 3), np.uint8))],
            [example(label=np.zeros((4, 6), np.uint8))],
            Named([example()]),
            [],
        )
    ]
    assert len(set(prints)) == len(prints)
    assert data.fingerprint(train) == data.fingerprint(
        data.load_source("digits_flag", "train", data_dir)
    )


def test_fingerprints_hash_arrays_and_numbers_of_any_name():
    clips = [{"id": 7, "clip": np.zeros((2, 4, 4, 3), np.uint8), "label": 3, "path": "a.mp4"}]
    prints = [data.fingerprint([clips[0] | change]) for change in ({}, {"label": 4}, {"id": 8})]
    assert len(set(prints)) == 3
    moved = dict(reversed(clips[0].items())) | {"path": "b.mp4"}
    assert data.fingerprint([moved]) == prints[0]
    assert data.fingerprint([{"x": np.zeros(3)}]) != data.fingerprint([{"x": np.ones(3)}])


def test_the_fingerprint_of_a_dataset_is_frozen(data_dir):
    # A run cannot be resumed if its data has another fingerprint.
    assert data.fingerprint(data.load_source("digits_flag", "val", data_dir)) == "61580d75cde25355"
