"""Compiles the step of an experiment for a TPU pod that this machine does not have.

    python -m experiments.compile --topology=v5e:2x4 --output=FILE.json \\
        --config=configs/segmentation.py:nonlocal_r50-d8_512x1024_40k_cityscapes \\
        --config.model.dtype=bfloat16

The command writes as JSON what the step needs per chip: memory, operations, memory traffic and
communication, and the time that follows from them. docs/devices.md explains the fields. A step that
does not fit in the memory of the chips is a result too. --topology=2*v5e:16x16 has two slices.
`make libtpu` installs the compiler, which runs on any x86-64 Linux machine. It takes minutes for
large networks.
"""

import json
import pathlib

from absl import flags

from experiments import cli
from nonlocal_jax._files import make_directory, write_json
from nonlocal_jax.topology import use_tpu_compiler
from nonlocal_jax.train.compile import compile_evaluation, compile_train_step

_STEPS = {"train": compile_train_step, "evaluate": compile_evaluation}

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "Generation and grid of chips, such as v5e:2x4 or v5p:2x2x2. 2*v5e:2x4 has two slices.",
    required=True,
)
_STEP = flags.DEFINE_enum(
    "step",
    "train",
    [*_STEPS],
    "The train step, or the inference of the evaluation, with one image for each mesh.context "
    "devices.",
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "Global batch size of the train step. Default: the one in the config.",
    lower_bound=1,
)
_TEXT = flags.DEFINE_string("text", None, "File to write the compiled program to (HLO).")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)


def main(_: list[str]) -> None:
    use_tpu_compiler()
    config, output = _CONFIG.value, pathlib.Path(_OUTPUT.value)
    if _BATCH_SIZE.value:
        config.data.batch_size = _BATCH_SIZE.value
    make_directory(str(output.parent))
    if _TEXT.value:
        make_directory(str(pathlib.Path(_TEXT.value).parent))
    report = _STEPS[_STEP.value](config, _TOPOLOGY.value, _TEXT.value)
    write_json(output, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    cli.run(main)
