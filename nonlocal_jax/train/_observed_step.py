"""A train step that says when it is compiled, and that can be traced."""

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from nonlocal_jax import distributed
from nonlocal_jax._progress import duration
from nonlocal_jax.compilation import count_programs
from nonlocal_jax.errors import disk_reason, first_line
from nonlocal_jax.train.state import TrainState
from nonlocal_jax.train.step import TrainStep


def _collectives_time_out() -> bool:
    """On CPUs, devices that connect for the first time wait for each other for only 30 seconds."""
    return distributed.is_one_of_several() and jax.default_backend() == "cpu"


class ObservedStep:
    """A train step that reports its compilations. Process 0 can trace some of the steps.

    This is a context manager. A trace that has begun is written on exit. If it cannot be written,
    this is only a warning.

    Args:
      train_step: See ``make_train_step``.
      step: Number of updates of the state that it is called with first.
      say: Prints a line.
      traced: The first and the last step of the trace, or None. The first step of a run is 1.
      directory: Where the trace is written, for TensorBoard or XProf.
    """

    def __init__(
        self,
        train_step: TrainStep,
        step: int,
        say: Callable[[str], None],
        traced: tuple[int, int] | None,
        directory: epath.Path,
    ):
        self._train_step = train_step
        self._start = self._step = step
        self._say = say
        self._traced = range(0) if traced is None else range(traced[0], traced[1] + 1)
        self._directory = directory
        self._trace: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> "ObservedStep":
        return self

    def __exit__(self, *_: object) -> None:
        self._write_trace()

    def __call__(
        self, state: TrainState, batch: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        self._step += 1
        if self._step in self._traced and self._trace is None and jax.process_index() == 0:
            self._start_trace()
        begin = time.monotonic()
        annotation = jax.profiler.StepTraceAnnotation("train", step_num=self._step)
        with annotation, count_programs() as programs:
            if self._step == self._start + 1 and _collectives_time_out():
                self._train_step.lower(state, batch).compile()
                distributed.gather(lambda: None)
            state, metrics = self._train_step(state, batch)
        self._report(programs, duration(time.monotonic() - begin))
        if self._trace is not None and self._step == self._traced[-1]:
            jax.block_until_ready(metrics)
            self._write_trace()
        return state, metrics

    def _report(self, programs: Mapping[str, int], seconds: str) -> None:
        if self._step == self._start + 1:
            is_read = 0 < programs["built"] == programs["read"]
            self._say(f"{'read from the cache' if is_read else 'compiled'} in {seconds}")
        elif programs["built"]:
            self._say(
                f"warning: step {self._step} compiled the train step again, in {seconds}, because "
                "the shapes, types or shardings of its inputs have changed; make the batches equal "
                "in shape and type"
            )

    def _start_trace(self) -> None:
        with self._warning():
            # Not all file systems can be written by the profiler.
            trace = tempfile.TemporaryDirectory()
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # calls of Python functions would fill the trace
            jax.profiler.start_trace(trace.name, profiler_options=options)
            self._trace = trace

    def _write_trace(self) -> None:
        trace, self._trace = self._trace, None
        if trace is None:
            return
        with self._warning(), trace as name:
            jax.profiler.stop_trace()
            for path in pathlib.Path(name).rglob("*"):
                if path.is_file():
                    target = self._directory / path.relative_to(name)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(path.read_bytes())
            self._say(f"traced the steps until {self._step} in {self._directory}")

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        """Turns an error of the trace into a warning, and ends the trace."""
        try:
            yield
        except Exception as error:  # the profiler and each object store have errors of their own
            self._traced = range(0)
            reason = disk_reason(error) or f"{type(error).__name__}: {first_line(error)}"
            self._say(
                f"warning: cannot write a trace to {self._directory}: {reason}; the training goes "
                "on without it"
            )
