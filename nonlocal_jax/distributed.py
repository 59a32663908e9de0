"""Runs of several processes: how they start, what they tell each other, and how they end.

All functions work in one process too. There they cost nothing.
"""

import contextlib
import functools
import json
import os
import platform
import secrets
import shlex
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from nonlocal_jax import __version__
from nonlocal_jax.errors import InputError, first_line, listing

Value = TypeVar("Value")
Facts = TypeVar("Facts", bound=Mapping[str, Any])

MODES = ("auto", "on", "off")
# JAX's own default, in seconds.
HEARTBEAT_TIMEOUT = 100
_heartbeat_timeout = HEARTBEAT_TIMEOUT
# Environment variables that JAX or a launcher sets for every process of several ones.
_SIGNS = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "JOB_COMPLETION_INDEX",  # Kubernetes
    "MEGASCALE_COORDINATOR_ADDRESS",  # several TPU slices
    "OMPI_COMM_WORLD_SIZE",
    "SLURM_STEP_NODELIST",
    "TPU_PROCESS_ADDRESSES",
    "TPU_PROCESS_ADDRESSES_PATH",
)
# Seconds to wait for the other processes before saying so.
_PATIENCE = 20.0
_PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def initialize(
    mode: str = "auto",
    *,
    heartbeat_timeout: int = HEARTBEAT_TIMEOUT,
    preemption: bool = True,
) -> None:
    """Connects the processes of a run. Call it before anything uses a device.

    JAX detects Cloud TPU, GKE, Slurm and Open MPI. Elsewhere, set the environment variables
    JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    From then on, an exception that nothing catches ends this process at once. Without that, it
    would wait five minutes for the others, which wait for it.

    Args:
      mode: "on" requires several processes, or a launcher of one. "off" goes on with one process.
        "auto" does so only if JAX detects no cluster and no environment variable is a sign of one.
      heartbeat_timeout: After this many seconds without a sign of life of a process, the others
        end.
      preemption: Whether SIGTERM only notifies the processes, see ``jax.experimental``'s
        ``multihost_utils.reached_preemption_sync_point``. Otherwise it ends the process.

    Raises:
      InputError: There are signs of several processes, but they cannot be connected.
    """
    global _heartbeat_timeout
    _heartbeat_timeout = heartbeat_timeout
    if mode == "off":
        return
    _check_slurm()
    signs = [name for name in _SIGNS if name in os.environ]
    off = "to run on one process, use --distributed=off"
    # JAX reads JAX_COORDINATOR_ADDRESS itself, but not these two.
    number, index = map(_integer, ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    # JAX waits in silence for 5 minutes, and then ends the process.
    waiting = threading.Timer(
        _PATIENCE, print, [f"waiting for the other processes; {off}"], {"file": sys.stderr}
    )
    waiting.daemon = True
    waiting.start()
    try:
        jax.config.update("jax_enable_preemption_service", preemption)
        with warnings.catch_warnings():  # in every Kubernetes pod, also of one process
            warnings.simplefilter("ignore")
            jax.distributed.initialize(
                num_processes=number,
                process_id=index,
                heartbeat_timeout_seconds=heartbeat_timeout,
            )
    except ValueError as error:
        if mode == "auto" and not signs:
            print("no cluster detected: running on one process", file=sys.stderr)
            return
        found = "and no variable of a cluster is set"
        if signs:
            found = f"with {' and '.join(signs)} set"
        raise InputError(
            f"JAX detects no cluster ({first_line(error)}), {found}; on Kubernetes, run "
            "pip install 'jax[k8s]'; without a launcher, set JAX_COORDINATOR_ADDRESS=HOST:PORT, "
            f"JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process; {off}"
        ) from error
    except (RuntimeError, OSError, ImportError) as error:
        raise InputError(
            f"cannot connect the processes: {first_line(error)}; check that all of them run and "
            f"reach process 0; {off}"
        ) from error
    finally:
        waiting.cancel()
    sys.excepthook = functools.partial(_leave_after, sys.excepthook)


def _leave_after(
    report: Callable[..., object],
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
) -> None:
    """Reports an exception that nothing has caught, and ends this process."""
    try:
        report(kind, error, trace)
    finally:
        # The number of processes is unknown before the devices are in use.
        if jax.distributed.is_initialized():
            # If all processes have the same error, each can print it.
            leave(128 + signal.SIGINT if kind is KeyboardInterrupt else 1, patience=3)


def _integer(name: str) -> int | None:
    """Returns the value of an environment variable, or None if it is not set or empty."""
    text = os.environ.get(name, "")
    if text and not text.isdecimal():
        raise InputError(f"{name} is {text!r}, which is not an integer; set it to one, or unset it")
    return int(text) if text else None


def _check_slurm() -> None:
    """Raises an error if a Slurm job has several tasks and ``srun`` did not start this process."""
    tasks = int(os.environ.get("SLURM_NTASKS") or 1)
    in_step = "SLURM_STEP_NODELIST" in os.environ
    # `salloc` can start a step of one task for its shell.
    step_tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or tasks) if in_step else 1
    if step_tasks < tasks:
        command = shlex.join(sys.orig_argv)
        raise InputError(
            f"this Slurm job has {tasks} tasks, but srun did not start this process; run\n"
            f"  srun {command}\nor, for one process, add --distributed=off"
        )


def is_one_of_several() -> bool:
    """Returns whether there are other processes. Does not initialize the devices if not."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def heartbeat_timeout() -> int:
    """Returns the seconds after which the processes of this run notice that one is lost."""
    return _heartbeat_timeout


def is_first() -> bool:
    """Returns whether this is process 0, which writes files and prints."""
    return not is_one_of_several() or jax.process_index() == 0


def gather(function: Callable[[], Value]) -> list[Value]:
    """Calls a function in every process. Returns the results of all of them.

    Args:
      function: Returns a value for JSON.

    Raises:
      InputError: The function raised an ``InputError`` or an ``OSError`` in one of the processes.
    """
    if jax.process_count() == 1:
        return [function()]
    value, message, cause = None, None, None
    try:
        value = function()
    except (InputError, OSError) as error:
        message, cause = str(error), error
    encoded = np.frombuffer(json.dumps([message, value]).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(encoded.size, np.int32))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: encoded.size] = encoded
    rows = multihost_utils.process_allgather(padded)
    results = [json.loads(row[:n].tobytes()) for row, n in zip(rows, sizes, strict=True)]
    for process, (message, _) in enumerate(results):
        if message is not None:
            raise InputError(f"process {process}: {message}" if process else message) from cause
    return [value for _, value in results]


def from_first(function: Callable[[], Value]) -> Value:
    """Calls a function in process 0, and returns its result in every process.

    Files can differ between hosts for a moment, and the processes must take the same decisions.

    Args:
      function: Returns a value for JSON.

    Raises:
      InputError: The function raised an ``InputError`` or an ``OSError``.
    """
    return gather(lambda: function() if jax.process_index() == 0 else None)[0]


def agree(function: Callable[[], Facts]) -> Facts:
    """Checks that the processes have the same facts, and the same versions of Python and packages.

    Args:
      function: Returns the facts of its process: values for JSON, and dictionaries of them.

    Returns:
      The facts.

    Raises:
      InputError: The processes differ. The message, in all of them, lists the differences. Also if
        the function raised an ``InputError`` or an ``OSError`` in one of the processes.
    """
    if jax.process_count() == 1:
        return function()
    versions = {"python": platform.python_version(), "nonlocal_jax": __version__}
    versions |= {name: metadata.version(name) for name in _PACKAGES}
    every = gather(lambda: {**function(), "version": versions})
    first, *others = (flatten_dict(facts, sep=".") for facts in every)
    different = []
    for name in dict.fromkeys(name for facts in (first, *others) for name in facts):
        for process, other in enumerate(others, 1):
            if other.get(name) != first.get(name):
                values = f"{first.get(name)!r} in process 0, {other.get(name)!r} in {process}"
                different.append(f"{name}: {values}")
                break
    if different:
        raise InputError(
            "the processes of this run differ; start all of them with the same command, data and "
            f"versions:{listing(different)}"
        )
    return every[0]


def check_shared(directory: Any) -> None:
    """Checks that a directory is the same one in all processes.

    Process 0 writes a file with a random name. All others look for it.

    Args:
      directory: An ``etils.epath.Path``.

    Raises:
      InputError: A process has another directory.
    """
    if jax.process_count() == 1:
        return
    token = directory / from_first(lambda: f".shared-{secrets.token_hex(8)}")
    from_first(lambda: token.write_text("") and None)
    try:
        seen = gather(lambda: (token.exists(), socket.gethostname(), str(directory)))
    finally:
        from_first(lambda: token.unlink(missing_ok=True))
    (_, host, path), *_ = seen
    for process, (is_shared, other_host, other_path) in enumerate(seen):
        if not is_shared:
            raise InputError(
                f"the processes have different work directories: {path} of process 0 on {host} is "
                f"not {other_path} of process {process} on {other_host}; use a --workdir on a file "
                "system or in a bucket that all hosts share"
            )


def leave(status: int, patience: float) -> NoReturn:
    """Ends this process at once, without waiting for threads.

    The end of process 0 ends the others too, and those that wait for this one end only after the
    heartbeat timeout. So this function first waits for the others to call it.

    Args:
      status: The exit status.
      patience: The number of seconds to wait.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # it is closed
            stream.flush()
    if jax.distributed.is_initialized():
        # The barrier cannot be interrupted, and ends the process if it fails.
        barrier = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        barrier.start()
        barrier.join(patience)
    os._exit(status)
