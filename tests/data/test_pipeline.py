import contextlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from nonlocal_jax import data
from nonlocal_jax.data import pipeline
from nonlocal_jax.errors import InputError
from tests.helpers import AUGMENTATION, NO_AUGMENTATION

CONFIG = AUGMENTATION | {"base_size": (24, 16), "crop": (16, 16)}
# The examples are unchanged, so that only their order matters.
PLAIN = NO_AUGMENTATION | {"base_size": (24, 16), "crop": (16, 24)}


class Numbered:
    """Random pictures. All labels of an example are its index."""

    def __init__(self, number=20):
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (number, 16, 24, 3), np.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        label = np.full((16, 24), index, np.uint8)
        return {"image": self.images[index], "label": label, "id": index}


class Prepare:
    def __init__(self, config):
        self.config = config

    def __call__(self, example, rng):
        return data.prepare_example(example, self.config, 20, rng)


def take(number, config=CONFIG, source=None, **kwargs):
    batches = data.train_batches(
        Numbered() if source is None else source,
        Prepare(config),
        **{"batch_size": 8, "seed": 0} | kwargs,
    )
    with contextlib.closing(batches):
        return list(itertools.islice(batches, number))


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        for field in a:
            np.testing.assert_array_equal(a[field], b[field])


def numbers(batches):
    return [int(label[0, 0]) for batch in batches for label in batch["label"]]


def test_batches_are_images_and_labels():
    for batch in take(3):
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            "image": ((8, 16, 16, 3), np.uint8),
            "label": ((8, 16, 16), np.uint8),
        }


@pytest.mark.parametrize("rows", [range(4, 8), [0, 3, 6], [7]])
def test_rows_are_those_of_the_global_batch(rows):
    expected = [{k: v[list(rows)] for k, v in batch.items()} for batch in take(6)]
    assert_equal(take(6, rows=rows), expected)
    assert_equal(take(2, rows=np.array(rows), step=4), expected[4:])


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_starting_at_a_step_continues_bit_for_bit(step):
    assert_equal(take(3, step=step), take(step + 3)[step:])


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_threads_change_nothing(num_threads):
    assert_equal(take(5, num_threads=num_threads), take(5))


class Damaged(Numbered):
    """One example is wrong."""

    def __getitem__(self, index):
        return super().__getitem__(index) | ({"label": "?"} if index == 0 else {})


def test_workers_change_nothing_and_report_a_wrong_example():
    # The example is in the third batch.
    assert 0 in numbers(take(3, PLAIN))[16:]
    expected = take(2)
    batches = data.train_batches(
        Damaged(), Prepare(CONFIG), batch_size=8, seed=0, workers=2, rows=range(1, 8)
    )
    with contextlib.closing(batches):
        for batch in expected:
            assert_equal([next(batches)], [{k: v[1:] for k, v in batch.items()}])
        with pytest.raises(InputError, match=r"^the label of example 0 is .*; use uint8"):
            next(batches)


class Deadly(Numbered):
    """Reading an example kills the process, as a full memory does."""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_reported():
    batches = data.train_batches(Deadly(), Prepare(CONFIG), batch_size=8, seed=0, workers=1)
    with contextlib.closing(batches), pytest.raises(InputError, match=r"fewer data\.workers"):
        next(batches)


def test_workers_that_are_starting_are_not_ended_by_the_signals_of_a_job():
    with pipeline._signals_blocked():
        multiprocessing.get_context("spawn").Event()  # Grain's workers have some
        script = "import os; [os.kill(os.getpid(), number) for number in (2, 15)]"
        assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_every_epoch_has_every_example_once_in_its_own_order():
    order = numbers(take(10, PLAIN))
    epochs = [order[i : i + 20] for i in range(0, 80, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_every_image_has_its_label():
    source = Numbered()
    for batch in take(3, PLAIN, source):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            np.testing.assert_array_equal(image, source.images[label[0, 0]])


def test_an_example_is_augmented_differently_in_each_epoch():
    source = Numbered(1)
    images = [batch["image"][0] for batch in take(4, CONFIG, source, batch_size=1)]
    assert len({image.tobytes() for image in images}) == 4


def test_any_transform_makes_the_batches():
    source = [{"id": i, "clip": np.full((2, 4), i, np.float32), "label": i} for i in range(4)]

    def transform(example, rng):
        return {"clip": example["clip"][:, :2], "label": np.int32(example["label"])}

    (batch,) = itertools.islice(data.train_batches(source, transform, batch_size=4, seed=0), 1)
    assert sorted(batch["label"]) == [0, 1, 2, 3]
    assert batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["clip"][:, 0, 0], batch["label"])
    assert batch["clip"].shape == (4, 2, 2)


def test_seeds_differ_in_order_and_augmentation():
    assert numbers(take(5, PLAIN)) != numbers(take(5, PLAIN, seed=1))
    # If epochs were seeded with seed + epoch, these would be equal.
    assert numbers(take(5, PLAIN))[20:40] != numbers(take(5, PLAIN, seed=1))[:20]
    one = Numbered(1)
    first, second = (take(1, CONFIG, one, batch_size=1, seed=seed)[0] for seed in (0, 1))
    assert (first["image"] != second["image"]).any()


def test_the_order_and_the_draws_of_a_seed_are_frozen():
    # Resumed runs rely on them. If they change, older checkpoints must be refused.
    assert numbers(take(2, PLAIN)) == [16, 2, 13, 14, 9, 7, 17, 6, 18, 3, 8, 15, 12, 11, 5, 4]
    batches = data.train_batches(
        Numbered(), lambda example, rng: {"draw": rng.integers(1000)}, batch_size=8, seed=0
    )
    assert next(batches)["draw"].tolist() == [94, 519, 402, 242, 495, 512, 495, 320]


def test_an_empty_batch_and_unknown_rows_are_refused():
    with pytest.raises(InputError, match="batch_size=0 is not positive; use"):
        take(1, batch_size=0)
    for rows in ([], [-1], [3, 8]):
        with pytest.raises(InputError, match=r"not rows of a batch of 8; use .* 0 to 7"):
            take(1, rows=rows)


def test_an_empty_source_is_refused():
    with pytest.raises(InputError, match="the source 'Numbered' has no examples; check"):
        take(1, source=Numbered(0))


def test_an_invalid_example_is_named():
    class Bad(Numbered):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"label": np.zeros((16, 24), np.int32)}

    with pytest.raises(InputError, match=r"the label of example \d+ is .*; use uint8"):
        take(1, source=Bad())
