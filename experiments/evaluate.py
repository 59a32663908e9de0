"""Evaluates a checkpoint on a dataset, with the published protocol of its experiment.

    python -m experiments.evaluate --checkpoint=PATH --output=DIR \\
        --config=configs/segmentation.py:nonlocal_r50-d8_512x1024_40k_cityscapes

PATH is the work directory of a training run, a saved step in it, a .safetensors file or a PyTorch
file. The command prints a table in percent and writes DIR/metrics.json. In this file the metrics
are fractions of one, or null if a class does not occur. It also contains the protocol, and the step
of a run.

Segmentation: with --multi_scale, the protocol is that of the "ms+flip" columns: six scales, each
with and without a flip. All devices work: those of a host evaluate images of similar sizes at the
same time, and each process its share of them. The network is compiled for a few sizes, and smaller
images are padded, which does not change the result. Later runs reuse the compiled
programs, see --compilation-cache.

Videos: each has config.evaluation.clips times config.evaluation.crops views, such as 10x3. The
metrics that training logs ("val/top1_1clip") are those of one view and not comparable with them.
"""

import json
import sys

import jax
from absl import flags

from experiments import cli
from nonlocal_jax import convert, distributed
from nonlocal_jax._files import as_path, make_directory, write_json
from nonlocal_jax._progress import say
from nonlocal_jax.data import fingerprint
from nonlocal_jax.tasks import get_task

_CONFIG = cli.define_config()
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Work directory, saved step, .safetensors, .pth or .pkl file.",
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "Directory for metrics.json.", required=True)
_MULTI_SCALE = flags.DEFINE_bool(
    "multi_scale", False, "Whether to average over scales and flips. Not for videos."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory of the prepared datasets.")
_SPLIT = flags.DEFINE_string("split", "val", "Split of the dataset.")
_ALLOW_NON_FINITE = cli.define_allow_non_finite()
cli.define_distributed()
cli.define_compilation_cache()


def _saved_step(path: str) -> str | None:
    """Returns the directory of the last step of a run, or None for a file."""
    step = convert.saved_step(path)
    return None if step is None else str(step)


def main(_: list[str]) -> None:
    config = _CONFIG.value
    directory = make_directory(_OUTPUT.value)
    task = get_task(config)
    source = task.open_source(config, _SPLIT.value, _DATA_DIR.value)
    evaluate = task.evaluator(config, source, multi_scale=_MULTI_SCALE.value)
    if _MULTI_SCALE.value and "miou_ms_flip" not in config.published:
        print(
            f"warning: the protocol of {config.name} has one scale and no flip; leave out "
            "--multi_scale for results that can be compared with others",
            file=sys.stderr,
        )
    distributed.agree(
        lambda: {
            "config": json.loads(config.to_json()),
            "data": fingerprint(source),
            "checkpoint": _CHECKPOINT.value,
            "multi_scale": _MULTI_SCALE.value,
        }
    )
    step = distributed.from_first(lambda: _saved_step(_CHECKPOINT.value))
    checkpoint = as_path(step or _CHECKPOINT.value)
    variables = convert.load(
        checkpoint,
        config.model,
        allow_missing_heads=False,
        allow_non_finite=_ALLOW_NON_FINITE.value,
    )
    # A step may have been copied to a directory of another name.
    number = int(checkpoint.name) if step and checkpoint.name.isdigit() else None
    if number is not None:
        say(f"evaluating step {number} of {checkpoint.parent.parent}")
    summary = evaluate(variables)
    if jax.process_index() > 0:
        return
    table, values = task.report(summary, config)
    values |= {
        "experiment": config.name,
        "checkpoint": _CHECKPOINT.value,
        "step": number,
        "split": _SPLIT.value,
    }
    write_json(directory / "metrics.json", values)
    say(table)
    say(f"wrote {directory / 'metrics.json'}")


if __name__ == "__main__":
    cli.run(main)
