"""Reads files in processes that may crash, hang or run out of memory."""

import multiprocessing
import pathlib
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from nonlocal_jax.errors import InputError
from tests.fuzz.kinds import Kind

Case = tuple[str, int]  # kind, index
Kinds = Mapping[str, Kind]


class Limits(NamedTuple):
    """What reading a file may take.

    Attributes:
      seconds: Time of the processor, as other processes may run beside it.
      memory: Bytes beyond those that the process had before.
    """

    seconds: float
    memory: int


LIMITS = Limits(10, 2 * 2**30)


class Result(NamedTuple):
    """What reading a file ended in.

    Attributes:
      case: The case.
      name: Its name.
      outcome: "loaded", "refused", or what failed.
      seconds: The time of the processor that it took.
      memory: The memory that it took, in bytes.
    """

    case: Case
    name: str
    outcome: str
    seconds: float
    memory: int

    @property
    def failed(self) -> bool:
        return self.outcome not in ("loaded", "refused")


def run(
    cases: Iterable[Case], kinds: Kinds, seed: int, processes: int, limits: Limits = LIMITS
) -> Iterator[Result]:
    """Yields the results of the cases. A process in which one failed is replaced."""
    cases = iter(cases)
    workers = [_Worker(kinds, seed, limits) for _ in range(processes)]
    try:
        while workers:
            for worker in [w for w in workers if w.case is None]:
                case = next(cases, None)
                if case is None:
                    workers.remove(worker)
                    worker.stop()
                else:
                    worker.start(case)
            wait([worker.connection for worker in workers], timeout=0.5)
            for worker in workers:
                result = worker.result()
                if result is not None:
                    yield result
                    if result.failed:
                        worker.stop()
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that reads one file at a time. It begins with the first one."""

    # For starting, importing and tracing the network, which no limit counts.
    _START = 300

    def __init__(self, kinds: Kinds, seed: int, limits: Limits):
        self._kinds, self._seed, self._limits = kinds, seed, limits
        self._process: Any = None
        self.case: Case | None = None

    def start(self, case: Case) -> None:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            arguments = (theirs, self._kinds, self._seed, self._limits)
            self._process = context.Process(target=_work, args=arguments, daemon=True)
            self._process.start()
            theirs.close()
            self._ready = False
        self.case, self._started = case, time.monotonic()
        self.connection.send(case)

    def result(self) -> Result | None:
        """Returns the result of the case, or None while it is read."""
        assert self.case is not None
        outcome = None
        try:
            while self.connection.poll():
                received = self.connection.recv()
                if isinstance(received, Result):
                    self.case = None
                    return received
                self._ready, self._started = True, time.monotonic()  # it begins to read
        except EOFError:
            self._process.join()
            outcome = f"the process ended with exit code {self._process.exitcode}"
        seconds = time.monotonic() - self._started
        if seconds > (6 * self._limits.seconds if self._ready else self._START):
            outcome = f"not done after {seconds:.0f} s"
        if outcome is None:
            return None
        case, self.case = self.case, None
        name, _ = self._kinds[case[0]].case(self._seed, case[1])
        return Result(case, name, outcome, seconds, 0)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self.connection.close()
            self._process = None


def _work(connection: Connection, kinds: Kinds, seed: int, limits: Limits) -> None:
    warnings.simplefilter("error")
    for prepare in {kind.prepare for kind in kinds.values()}:
        prepare()
    # A net that catches what fails anyway, before the machine is out of memory.
    net = _status("VmData") + 2 * limits.memory
    resource.setrlimit(resource.RLIMIT_DATA, (net, net))
    with tempfile.TemporaryDirectory() as directory:
        reader = Reader(kinds, seed, limits, pathlib.Path(directory))
        while True:
            case = connection.recv()
            connection.send(reader.read(case, lambda: connection.send("begin")))


class Reader(NamedTuple):
    """Reads files in this process."""

    kinds: Kinds
    seed: int
    limits: Limits
    directory: pathlib.Path

    def read(self, case: Case, begin: Callable[[], object] = lambda: None) -> Result:
        """Writes a file and reads it. ``begin`` is called in between."""
        kind = self.kinds[case[0]]
        name, data = kind.case(self.seed, case[1])
        path = self.directory / f"{case[1]}{kind.suffix}"
        path.write_bytes(data)
        del data
        before = _status("VmRSS")
        if _status("VmHWM") - before > 2**26:
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        begin()
        start = time.process_time()
        try:
            kind.read(str(path))
            outcome = "loaded"
        except InputError as error:
            outcome = _refusal(error)
        except Exception as error:
            outcome = f"{type(error).__name__}: {str(error)[:200]}"
        seconds = time.process_time() - start
        memory = max(0, _status("VmHWM") - before)
        path.unlink()
        if outcome in ("loaded", "refused"):
            if seconds > self.limits.seconds:
                outcome = f"{seconds:.0f} s"
            elif memory > self.limits.memory:
                outcome = f"{memory / 2**30:.1f} GiB"
        return Result(case, name, outcome, seconds, memory)


def _refusal(error: InputError) -> str:
    """Returns "refused" if an error is one message that can be printed."""
    message = str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return "MemoryError"
        cause = cause.__cause__
    if len(message) > 20_000 or not message.replace("\n", "").isprintable():
        return f"a message that cannot be printed: {message[:200]!r}"
    return "refused"


def _status(field: str) -> int:
    """Returns a number of bytes from the status of this process."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 2**10
    raise LookupError(field)
