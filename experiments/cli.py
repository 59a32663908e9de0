"""Parses the flags of every command and runs it. An error of the user ends with exit status 2."""

import difflib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from logging import Formatter, LogRecord
from typing import Any, NoReturn

from absl import app, flags, logging
from flax.traverse_util import flatten_dict
from ml_collections import config_flags

from experiments._names import find_config
from nonlocal_jax import compilation, distributed
from nonlocal_jax._progress import say
from nonlocal_jax.errors import InputError
from nonlocal_jax.topology import use_tpu_compiler

__all__ = [
    "define_allow_non_finite",
    "define_compilation_cache",
    "define_config",
    "define_distributed",
    "fail",
    "run",
    "stop",
    "use_tpu_compiler",
]

# Errors that a mistake of the user can cause: while the flags are parsed and the config file is
# run, and afterwards. All other errors are bugs and are shown with their traceback.
_FLAG_ERRORS = (
    flags.Error,
    KeyError,
    AttributeError,
    TypeError,
    ValueError,
    ImportError,
    OSError,
    SyntaxError,
)
_INPUT_ERRORS = (InputError, OSError)
# Name of the thread of nonlocal_jax.train that waits for data.
_READER = "next_batch"

_CONFIG_HELP = (
    "Experiment: configs/FILE.py:NAME. `python -m experiments names` lists all. "
    "--config.FIELD=VALUE changes a field, such as --config.steps=100, "
    "--config.data.crop=(64,64) or --noconfig.evaluation.flip. "
    "`train` writes all fields to config.json in its --workdir."
)


def define_config(*, required: bool = True) -> flags.FlagHolder:
    """Defines ``--config=configs/FILE.py:NAME``, and ``--config.a.b=value`` for every field."""
    try:
        config = config_flags.DEFINE_config_file("config", help_string=_CONFIG_HELP)
    except flags.Error as error:  # the file of --flagfile is read here
        fail(error)
    _list_in_help(config)
    if required:
        flags.mark_flag_as_required("config")
    return config


def define_allow_non_finite() -> flags.FlagHolder:
    """Defines ``--allow-non-finite``."""
    holder = flags.DEFINE_boolean(
        "allow_non_finite",
        False,
        "Whether to accept a checkpoint with values that are NaN or infinite.",
    )
    _list_in_help(holder)
    return holder


def _list_in_help(holder: flags.FlagHolder) -> None:
    """Makes ``--help`` list a flag, as it lists those of the command's own module."""
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[holder.name])


def define_compilation_cache() -> None:
    """Defines ``--compilation-cache``."""
    holder = flags.DEFINE_string(
        "compilation_cache",
        None,
        "Directory or gs://... of compiled programs, which later runs reuse, or off. Default: "
        "$JAX_COMPILATION_CACHE_DIR if it is set, else ~/.cache/nonlocal_jax/compiled.",
    )
    _list_in_help(holder)


def define_distributed() -> None:
    """Defines the flags of a command that several processes can run together."""
    mode = flags.DEFINE_enum(
        "distributed",
        "auto",
        distributed.MODES,
        "Whether this is one of several processes: on, off, or auto for what JAX detects.",
    )
    timeout = flags.DEFINE_integer(
        "heartbeat_timeout",
        distributed.HEARTBEAT_TIMEOUT,
        "Seconds without a sign of life of one process after which the others end.",
        lower_bound=1,
    )
    _list_in_help(mode)
    _list_in_help(timeout)


def stop(number: signal.Signals, text: str, status: int) -> NoReturn:
    """Says that a signal stopped the command, and ends the process."""
    say(f"{number.name}: {text}")
    # The other processes stop at the same step. Process 0 may still be drawing.
    distributed.leave(status, patience=60)


def fail(message: object) -> NoReturn:
    """Prints one message on stderr and exits with status 2."""
    print(f"error: {message}", file=sys.stderr)
    _exit(2)


def _exit(status: int) -> NoReturn:
    """Ends the process. Python would wait for the other processes, and for threads that read data.

    A file server may be slow for minutes.
    """
    is_reading = any(thread.name.startswith(_READER) for thread in threading.enumerate())
    if is_reading or distributed.is_one_of_several():
        # If all processes have the same error, each can print it.
        distributed.leave(status, patience=3 if status else 60)
    sys.exit(status)


def _report_unraisable(unraisable: Any) -> None:
    """Reports an error that Python ignores. After a failed save, Orbax's threads raise dozens."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _config_mistake(argv: list[str]) -> str | None:
    """Returns a message if the config has no field a.b, or None."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=[])  # no --config.a.b
    try:
        values(argv, known_only=True)
    except _FLAG_ERRORS:
        return None  # the error of the config file itself
    if values.config is None:
        return None
    leaves = [*flatten_dict(values.config.to_dict(), sep=".")]
    for argument in argv:
        leaf = re.split(r"[=\[]", argument)[0].removeprefix("--config.")
        if argument.startswith("--config.") and leaf not in leaves:
            near = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.4)
            hint = (
                f"did you mean --config.{near[0]}?"
                if near
                else "`train` writes all fields to config.json"
            )
            return f"unknown config field {leaf!r}; {hint}"
    return None


def _flag_message(error: Exception) -> str:
    """Returns the message of an error in one line, without a quoted traceback."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if missing := re.findall(r"Flag --(\S+) must have a value other than None", text):
        return f"missing --{' and --'.join(missing)}; run with --help to see all flags"
    if "Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text.replace("module 'config_config'", "the file of --config").replace("\n", " ")


def _with_underscores(argument: str) -> str:
    """Changes ``--data-dir=x`` to ``--data_dir=x``. Names of config fields are not changed."""
    name, equals, value = argument.partition("=")
    if name.startswith("--") and not name.startswith("--config"):
        name = "--" + name[2:].replace("-", "_")
    return name + equals + value


def _with_config_file(argv: list[str]) -> list[str]:
    """Replaces the value of --config by one whose file exists."""
    argv = list(argv)
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag == "--config" and equals:
            argv[i] = f"{flag}={find_config(value)}"
        elif flag == "--config" and argv[i + 1 :]:
            argv[i + 1] = find_config(argv[i + 1])
    return argv


def _parse(argv: list[str]) -> list[str]:
    try:
        argv = [_with_underscores(a) for a in flags.FLAGS.read_flags_from_files(argv)]
        if "config" in flags.FLAGS:
            argv = _with_config_file(argv)
        arguments = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            # An error of the config file is raised only here.
            _ = flags.FLAGS.config.lock
    except InputError as error:
        fail(error)
    except _FLAG_ERRORS as error:
        fail(_config_mistake(argv) or _flag_message(error))
    except SystemExit:  # --help, for which absl exits with status 1
        sys.exit(0)
    return arguments


def _is_not_of_orbax(record: LogRecord) -> bool:
    """Whether a log record is worth showing. Orbax logs tracebacks before it raises errors."""
    return record.name != "asyncio" and "/orbax/checkpoint/" not in record.pathname


def run(
    main: Callable[[list[str]], None], *, positional: bool = False, preemption: bool = False
) -> None:
    """Runs ``main`` with the parsed arguments. Exits with status 0 only if it returns.

    Args:
      main: Function of the arguments that are not flags. The first one is the program's name.
      positional: Whether there may be other such arguments.
      preemption: Whether ``main`` stops on SIGTERM by itself, see ``distributed.initialize``.
    """
    # Libraries print only warnings and errors.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    logging.set_verbosity(logging.WARNING)
    # Without the time, thread and source line of absl.
    handler = logging.get_absl_handler()
    handler.setFormatter(Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(_is_not_of_orbax)
    if sys.unraisablehook is sys.__unraisablehook__:  # not that of a debugger or of a test
        sys.unraisablehook = _report_unraisable

    def guarded(arguments: list[str]) -> None:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # see experiments/__init__.py
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            if arguments[1:] and not positional:
                raise InputError(f"unexpected argument {arguments[1]!r}; start flags with --")
            if "distributed" in flags.FLAGS:
                distributed.initialize(
                    flags.FLAGS.distributed,
                    heartbeat_timeout=flags.FLAGS.heartbeat_timeout,
                    preemption=preemption,
                )
                if not distributed.is_first():
                    logging.set_verbosity(logging.ERROR)
            if "compilation_cache" in flags.FLAGS:
                compilation.use_cache(flags.FLAGS.compilation_cache)
            main(arguments)
            _exit(0)
        except _INPUT_ERRORS as error:
            fail(error)
        except KeyboardInterrupt:
            _exit(128 + signal.SIGINT)

    app.run(guarded, flags_parser=_parse)
