"""The message for a training that needs more memory than there is."""

import contextlib
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from nonlocal_jax.errors import InputError, first_line, is_out_of_memory

# Changes of the config that need less memory, and the fields that have the values now.
_CHANGES = (
    ("a smaller data.batch_size", "data.batch_size"),
    ("a smaller data.crop", "data.crop"),
    ("fewer data.frames", "data.frames"),
    ("a larger mesh.context, to split each example over devices", "mesh.context"),
    ("train.remat=full", "train.remat"),
    ("a larger train.accumulate", "train.accumulate"),
    ("a larger mesh.fsdp, to split the state over devices", "mesh.fsdp"),
    ("model.dtype=bfloat16", "model.dtype"),
)


@contextlib.contextmanager
def memory_errors(config: ConfigDict) -> Iterator[None]:
    """Turns errors of a full memory, of the devices or of the host, into an ``InputError``."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        changes = []
        for change, path in _CHANGES:
            section, _, name = path.partition(".")
            value = config[section].get(name)
            if value is not None and not change.endswith(f"={value}"):
                text = "x".join(map(str, value)) if isinstance(value, tuple) else value
                changes.append(f"{change} (now {text})")
        raise InputError(
            f"out of memory ({first_line(error)}); use {', '.join(changes)}; fields other than "
            "mesh.* and train.* need a new --workdir"
        ) from error
