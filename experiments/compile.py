"""Compiles the real train step for a TPU pod that is not there; memory and cost per chip as JSON.

    python -m experiments.compile --topology=v5e:2x4 --output=FILE.json \\
        --config=configs/segmentation.py:nonlocal_r50-d8_512x1024_40k_cityscapes \\
        --config.model.dtype=bfloat16

The compiler comes with libtpu and runs on any x86 Linux. Whole networks take minutes.
"""

import importlib.util
import json
import os
import pathlib
import sys

from absl import flags

from experiments import cli
from nonlocal_jax.errors import InputError
from nonlocal_jax.files import make_directory, write_json

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "generation and chips, such as v5e:2x4 or v5p:2x2x2", required=True
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "global batch; the experiment's own by default", lower_bound=1
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write", required=True)


def _prepare_environment() -> None:
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


def main(_: list[str]) -> None:
    _prepare_environment()
    from nonlocal_jax.train.compile import compile_train_step  # imports jax: environment first

    config, output = _CONFIG.value, pathlib.Path(_OUTPUT.value)
    if _BATCH_SIZE.value:
        config.data.batch_size = _BATCH_SIZE.value
    make_directory(str(output.parent))
    report = compile_train_step(config, _TOPOLOGY.value)
    write_json(output, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    cli.run(main)
