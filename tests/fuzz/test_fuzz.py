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
    names = ("loaded", "refused", "crash", "memory", "error", "message", "hang")
    return {name: name.encode() for name in names}


def _none(rng: random.Random):
    return b""


def _nothing():
    pass


def test_what_the_workers_notice():
    kinds = {"bad": Kind("", 0, _misbehave, _none, _misbehaving, _nothing)}
    cases = [("bad", i) for i in range(len(_misbehaving()))]
    limits = workers.Limits(0.5, 2**26)
    results = {r.name: r for r in workers.run(cases, kinds, 0, processes=2, limits=limits)}
    assert {name for name, result in results.items() if not result.failed} == {"loaded", "refused"}
    assert results["crash"].outcome == "the process ended with exit code -11"
    assert results["hang"].outcome.startswith("not done after")
    assert results["memory"].outcome == "0.1 GiB"
    assert results["error"].outcome == "TypeError: unhashable"
    assert results["message"].outcome.startswith("a message that cannot be printed")
