"""The persistent cache of compiled programs, and a count of what is compiled."""

import contextlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import jax

from nonlocal_jax._files import PathLike, make_directory
from nonlocal_jax._progress import say
from nonlocal_jax.errors import InputError

_DEFAULT = "~/.cache/nonlocal_jax/compiled"
_BUILT = "/jax/core/compile/backend_compile_duration"
_READ = "/jax/compilation_cache/cache_hits"


def use_cache(directory: PathLike | None = None) -> None:
    """Keeps every program that JAX compiles in a directory, where later processes find it.

    Call it before the first computation. A program is compiled again if it, the version of JAX, the
    compiler's flags or the type of the device differ. Nothing is ever deleted.

    Args:
      directory: Directory or bucket ("gs://..."), or "off" for no cache. Processes on several hosts
        need a shared one, because only process 0 writes. On CPUs, only process 0 finds programs
        there. Default: what JAX reads from the environment variable JAX_COMPILATION_CACHE_DIR if it
        is set (empty for no cache), else ``~/.cache/nonlocal_jax/compiled``.

    Raises:
      InputError: ``directory`` cannot be written.
    """
    if directory is None and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    if directory == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    try:
        path = make_directory(directory or _DEFAULT)
    except InputError as error:
        if directory:
            raise
        say(f"warning: compiled programs are not kept, because {error}", sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    # By default JAX keeps only programs that took long. A second start should compile nothing.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def count_programs() -> Iterator[Counter]:
    """Yields a counter of the programs that this thread builds inside the ``with`` statement.

    "built" are all of them, "read" are those that were not compiled but read from the cache.
    """
    thread, counter = threading.get_ident(), Counter()

    def add(event: str, *_: object, **__: object) -> None:
        names = {_BUILT: "built", _READ: "read"}
        if event in names and threading.get_ident() == thread:
            counter[names[event]] += 1

    jax.monitoring.register_event_listener(add)
    jax.monitoring.register_event_duration_secs_listener(add)
    try:
        yield counter
    finally:
        jax.monitoring.unregister_event_listener(add)
        jax.monitoring.unregister_event_duration_listener(add)
