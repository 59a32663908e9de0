"""One entry for every command: what a user can mend ends in one message and exit status 2."""

import importlib.util
import os
import pathlib
import signal
import sys
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from nonlocal_jax.errors import InputError

# What flags and files can raise on a user's account. Everything else is a bug and keeps its
# traceback.
_FLAG_ERRORS = (flags.Error, KeyError, AttributeError, TypeError, ValueError, ImportError, OSError)
_INPUT_ERRORS = (InputError, OSError)


def define_config(*, required: bool = True) -> flags.FlagHolder:
    """Defines ``--config=configs/FILE.py:NAME`` with ``--config.a.b=value`` for every leaf."""
    config = config_flags.DEFINE_config_file("config", help_string="configs/FILE.py:NAME")
    if required:
        flags.mark_flag_as_required("config")
    return config


def fail(message: object) -> None:
    """Prints one message on stderr and exits with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _flag_message(error: Exception) -> str:
    """The one sentence of a flag error: without the repr of a KeyError or a quoted traceback."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text.strip("'\"").replace("\\'", "'").replace("\\n", ". ").replace("\n", " ")


def _with_underscores(argument: str) -> str:
    """``--data-dir=x`` as ``--data_dir=x``; leaves of the config keep their spelling."""
    name, equals, value = argument.partition("=")
    if name.startswith("--") and not name.startswith("--config"):
        name = "--" + name[2:].replace("-", "_")
    return name + equals + value


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS([_with_underscores(argument) for argument in argv])
    except _FLAG_ERRORS as error:
        fail(_flag_message(error))
        raise


def use_tpu_compiler() -> None:
    """Finds libtpu, and keeps it from looking for a machine with TPUs or for other users."""
    beside = pathlib.Path(sys.prefix, "libtpu", "libtpu", "libtpu.so")
    if "TPU_LIBRARY_PATH" not in os.environ and importlib.util.find_spec("libtpu") is None:
        if not beside.exists():
            raise InputError(
                "the TPU compiler is not installed: run `make setup`, or "
                f"`pip install --target {beside.parents[1]} -r requirements-libtpu.txt`"
            )
        os.environ["TPU_LIBRARY_PATH"] = str(beside)
    os.environ.update(
        JAX_PLATFORMS="cpu",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        # Any valid names do: the topology decides what is compiled for.
        TPU_ACCELERATOR_TYPE="v5litepod-8",
        TPU_WORKER_HOSTNAMES="localhost",
    )
    import jax  # after the environment, which it reads when it is first imported

    jax.config.update("jax_platforms", "cpu")


def run(main: Callable[[list[str]], None], *, positional: bool = False) -> None:
    """Runs ``main`` with the parsed arguments; exits 0 only if it returns.

    Arguments that are no flags are refused unless ``main`` takes ``positional`` ones.
    """
    # The commands' own lines are what counts: of libraries, warnings alone.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    logging.set_verbosity(logging.WARNING)

    def guarded(arguments: list[str]) -> None:
        try:
            if arguments[1:] and not positional:
                raise InputError(f"{arguments[1]!r} is no flag: options start with two dashes")
            main(arguments)
        except _INPUT_ERRORS as error:
            fail(error)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)

    app.run(guarded, flags_parser=_parse)
