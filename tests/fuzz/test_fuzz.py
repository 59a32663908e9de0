"""A part of ``make fuzz``, and what its workers notice."""

import os
import random
import signal
import time

from nonlocal_jax.errors import InputError
from tests.fuzz import workers
from tests.fuzz.kinds import KINDS, Kind, cached


def test_damaged_and_hostile_files_are_read_or_refused():
    cases = []
    for kind in KINDS:
        hostile = len(cached(KINDS[kind].hostile))
        cases += [(kind, i) for i in (*range(0, hostile, 7), *range(hostile, hostile + 250))]
    results = list(workers.run(cases, KINDS, seed=1, processes=1))
    assert len(results) == len(cases)
    assert not [result for result in results if result.failed]
    assert any(result.outcome == "loaded" for result in results)


def _misbehave(path):
    with open(path, "rb") as file:
        name = file.read().decode()
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif name == "hang":
        time.sleep(1000)
    elif name == "memory":
        assert b"x" * (100 * 2**20)
    elif name == "error":
        raise TypeError("unhashable")
    elif name == "message":
        raise InputError("\x1b[31m")
    elif name == "refused":
        raise InputError("damaged")


def _misbehaving():
    names = ("loaded", "refused", "memory", "error", "message", "crash", "hang")
    return {name: name.encode() for name in names}


def _none(rng: random.Random):
    return b""


def _nothing():
    pass


BAD = {"bad": Kind("", 0, _misbehave, _none, _misbehaving, _nothing)}
LIMITS = workers.Limits(0.5, 2**26)


def test_what_a_reader_notices(tmp_path):
    reader = workers.Reader(BAD, 0, LIMITS, tmp_path)
    results = [reader.read(("bad", i)) for i in range(5)]
    assert [result.outcome for result in results] == [
        *("loaded", "refused", "0.1 GiB", "TypeError: unhashable"),
        r"a message that cannot be printed: '\x1b[31m'",
    ]


def test_a_process_that_crashes_or_hangs_is_replaced():
    cases = [("bad", i) for i in (5, 0, 6)]
    crash, loaded, hang = workers.run(cases, BAD, 0, processes=1, limits=LIMITS)
    assert crash.outcome == "the process ended with exit code -11"
    assert loaded.outcome == "loaded"
    assert hang.outcome.startswith("not done after")
