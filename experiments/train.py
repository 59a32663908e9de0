"""Trains an experiment. Run the same command again to resume a run that was stopped or killed.

    python -m experiments.train --workdir=DIR --config=configs/segmentation.py:demo_nonlocal

To start from the checkpoint of an experiment, add --init=PATH. For data with other classes,
--reinit-head initializes the classifiers. For a network with blocks from one without or with other
blocks, --new-blocks initializes the blocks. A run that is resumed does not read PATH again,
and is refused if it started from another checkpoint.

The command writes checkpoints/STEP, config.json, metrics.jsonl and curves.png to DIR. After SIGTERM
or SIGHUP it saves the state and exits with status 0. After Ctrl-C it saves the state and exits with
status 130.
"""

import re
import signal

from absl import flags

from experiments import cli
from nonlocal_jax import train
from nonlocal_jax._progress import say
from nonlocal_jax.errors import InputError
from nonlocal_jax.tasks import get_task

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Directory of the run, or gs://BUCKET/PATH. Use a separate one for each run.",
    required=True,
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory of the prepared datasets.")
_INIT = flags.DEFINE_string(
    "init",
    None,
    "Checkpoint to start from: work directory, saved step, .safetensors, .pth or .pkl file.",
)
_REINIT_HEAD = flags.DEFINE_boolean(
    "reinit_head",
    False,
    "Whether to initialize the classifiers instead of reading them from --init.",
)
_NEW_BLOCKS = flags.DEFINE_boolean(
    "new_blocks",
    False,
    "Whether to initialize the blocks instead of reading them from --init.",
)
_ALLOW_NON_FINITE = cli.define_allow_non_finite()
_STALL_TIMEOUT = flags.DEFINE_float(
    "stall_timeout",
    600,
    "Seconds after which a step that does not end prints the stacks of all threads, once, or 0 for "
    "no report.",
    lower_bound=0,
)
_PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "Steps FIRST:LAST that process 0 traces into WORKDIR/profile, for TensorBoard or XProf.",
)
cli.define_distributed()
cli.define_compilation_cache()


def _steps(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise InputError(f"--profile is {text!r}; use FIRST:LAST, such as 10:15")
    return int(match[1]), int(match[2])


def main(_: list[str]) -> None:
    config = _CONFIG.value
    task = get_task(config)
    training, validation = (
        task.open_source(config, split, _DATA_DIR.value) for split in ("train", "val")
    )
    result = train.train(
        config,
        _WORKDIR.value,
        training,
        evaluate=task.evaluator(config, validation, quick=True),
        init=_INIT.value,
        reinit_head=_REINIT_HEAD.value,
        new_blocks=_NEW_BLOCKS.value,
        allow_non_finite=_ALLOW_NON_FINITE.value,
        stall_timeout=_STALL_TIMEOUT.value,
        profile=_steps(_PROFILE.value),
    )
    step = int(result.state.step)
    if result.signal is not None:
        status = 128 + signal.SIGINT if result.signal == signal.SIGINT else 0
        saved = f"saved step {step}" if step else "no step is done, and nothing is saved"
        cli.stop(result.signal, f"{saved}; run the same command to resume", status)
    if step == config.steps:
        # metrics.jsonl has the others.
        shown = [name for name in result.metrics if name.startswith("val/")]
        metrics = "  ".join(f"{n} {result.metrics[n]:.4g}" for n in [*shown, "train/loss"])
        say(f"done: step {step}  {metrics}")


if __name__ == "__main__":
    cli.run(main, preemption=True)
