"""Compiles programs for TPUs that this machine does not have.

The compiler is libtpu, which runs on any x86-64 Linux machine and is installed by ``make libtpu``::

    use_tpu_compiler()
    mesh = make_mesh(topology_devices("v5e:2x4"))
    compiled = jax.jit(f).lower(jax.ShapeDtypeStruct(..., sharding=...)).compile()
    compiled_report(compiled)["bytes_per_chip"]["peak"]
"""

import importlib.util
import os
import pathlib
import platform
import re
import sys
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from nonlocal_jax.errors import InputError, first_line


class Chip(NamedTuple):
    """The published numbers of one TPU chip.

    Attributes:
      flops: Peak bfloat16 operations per second. A multiply and an add are two.
      memory: Bytes of memory (HBM).
      bandwidth: Bytes per second between the chip and its memory.
      interconnect: Bytes per second that a chip sends to its neighbors (ICI), over all links. The
        sources have the sum of both directions, twice as much.
      network: Bytes per second between slices (DCN).
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float
    network: float


_GIB = 2**30
# By the generation in the name of a topology. Sources, read in November 2026:
# https://cloud.google.com/tpu/docs/v4 (links: 6 of 50 GB/s, arXiv:2304.01433), v5e (bandwidth:
# 819 GB/s; its two network cards of 100 Gbit/s serve 8 chips), v5p, v6e, tpu7x. The network of v4
# is that of v5p.
CHIPS = {
    "v4": Chip(275e12, 32 * _GIB, 1228e9, 300e9, 6.25e9),
    "v5e": Chip(197e12, 16 * _GIB, 819e9, 200e9, 3.125e9),
    "v5p": Chip(459e12, 95 * _GIB, 2765e9, 600e9, 6.25e9),
    "v6e": Chip(918e12, 32 * _GIB, 1638e9, 400e9, 12.5e9),
    "tpu7x": Chip(2307e12, 192 * _GIB, 7380e9, 600e9, 12.5e9),
}


def use_tpu_compiler() -> None:
    """Sets up this process to compile for TPUs and to run on the CPU.

    Sets environment variables that libtpu reads when JAX loads it. Call it before the first
    computation: the platform of a process cannot change later.

    Raises:
      InputError: libtpu is not installed, or does not exist for this platform.
    """
    library = pathlib.Path(sys.prefix, "libtpu", "libtpu", "libtpu.so")
    if "TPU_LIBRARY_PATH" not in os.environ and importlib.util.find_spec("libtpu") is None:
        machine = f"{platform.system()} {platform.machine()}"
        if not library.exists() and machine != "Linux x86_64":
            raise InputError(
                f"the TPU compiler, libtpu, does not exist for {machine}; "
                "use an x86-64 Linux machine"
            )
        if not library.exists():
            raise InputError(
                "the TPU compiler is not installed; run `make libtpu` or "
                f"`pip install --target {library.parents[1]} -r requirements-libtpu.txt`"
            )
        os.environ["TPU_LIBRARY_PATH"] = str(library)
    os.environ.update(
        JAX_PLATFORMS="cpu",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        # Without these, libtpu asks the cloud for the machine's TPUs. Any valid values work: the
        # topology decides which TPUs the program is compiled for.
        TPU_ACCELERATOR_TYPE="v5litepod-8",
        TPU_WORKER_HOSTNAMES="localhost",
    )
    # JAX read JAX_PLATFORMS when it was imported.
    jax.config.update("jax_platforms", "cpu")
    # JAX cannot load a cached program for a TPU that this machine does not have.
    jax.config.update("jax_enable_compilation_cache", False)


def topology_devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a TPU topology. Call ``use_tpu_compiler`` first.

    Args:
      topology: Generation and grid of chips, such as "v5e:2x4". "2*v5e:2x4" has two such slices.

    Raises:
      InputError: The topology does not exist.
    """
    try:
        slices, slice_topology = re.fullmatch(r"(?:([1-9]\d*)\*)?(.*)", topology).groups()
        options = {"num_slices": int(slices)} if slices else {}
        return list(topologies.get_topology_desc(slice_topology, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"unknown TPU topology {topology!r} ({first_line(error)}); use a generation and a grid "
            "of chips, such as v5e:2x4, v6e:16x16 or v5p:2x2x2, or several slices: 2*v5e:16x16"
        ) from error


def chip_of(topology: str) -> Chip:
    """Returns the numbers of the chips of a TPU topology.

    Raises:
      InputError: They are not known.
    """
    generation = topology.partition("*")[2] or topology
    generation = generation.partition(":")[0]
    if generation not in CHIPS:
        raise InputError(
            f"the numbers of the chips of {topology} are not known; use one of {', '.join(CHIPS)}"
        )
    return CHIPS[generation]


def compiled_report(compiled: jax.stages.Compiled, cores: int = 1) -> dict[str, Any]:
    """Returns the memory and the cost of a compiled program, as the compiler reports them.

    Args:
      compiled: The program.
      cores: JAX devices per chip. A TPU v3 or 7x chip has two.

    Returns:
      Plain values for JSON. ``bytes_per_chip`` maps kinds of memory to their sizes. Donated
      arguments count in ``arguments`` and again in ``outputs`` and ``aliased``. ``peak`` is the
      largest amount of memory in use at one time; on a CPU it does not include ``temporaries``.
      ``bytes_accessed_per_chip`` is the compiler's estimate for one call.
    """
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "generated_code": memory.generated_code_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
    }
    return {
        "bytes_per_chip": {kind: cores * size for kind, size in sizes.items()},
        "bytes_accessed_per_chip": cores * cost["bytes accessed"],
    }
