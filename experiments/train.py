"""Trains an experiment; the same command again goes on where it was stopped or killed.

    python -m experiments.train --workdir=DIR --config=configs/segmentation.py:demo_nonlocal

DIR receives checkpoints/STEP, config.json, metrics.jsonl and curves.png. SIGTERM saves and exits
with status 0, Ctrl-C saves and exits with 130.
"""

import signal

from absl import flags

from experiments import cli
from nonlocal_jax import data, evaluation, train

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of this run alone", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "where prepared datasets lie")
_INIT = flags.DEFINE_string(
    "init", None, "checkpoint to start from: work directory, saved step, .safetensors or .pth file"
)


def main(_: list[str]) -> None:
    config = _CONFIG.value
    data.get_info(config.data.name).check_num_classes(config.model.num_classes)
    training, validation = (
        data.load_source(config.data.name, split, _DATA_DIR.value) for split in ("train", "val")
    )
    result = train.train(
        config,
        _WORKDIR.value,
        training,
        evaluate=evaluation.evaluator(config, validation),
        init=_INIT.value,
    )
    step = int(result.state.step)
    if result.signal is not None:
        print(f"{result.signal.name}: saved step {step}; the same command goes on from there")
    if result.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if step == config.steps:
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
        print(f"done: {metrics}")


if __name__ == "__main__":
    cli.run(main)
