"""Measures a checkpoint on a dataset by the protocol that its experiment was published with.

    python -m experiments.evaluate --checkpoint=PATH --output=DIR \\
        --config=configs/segmentation.py:nonlocal_r50-d8_512x1024_40k_cityscapes

PATH is a training work directory, one saved step in it, a .safetensors or a .pth file. The table
goes to stdout, in percent; DIR/metrics.json holds the same numbers as fractions of one, null where
a class does not occur. --multi_scale is the protocol of the "ms+flip" columns: six scales, each
with and without a flip. The network is compiled once for every size of image; where sizes differ,
set JAX_COMPILATION_CACHE_DIR to a directory and later runs find the programs there.
"""

import math

import jax
from absl import flags

from experiments import cli
from nonlocal_jax import convert, data, evaluation
from nonlocal_jax._files import make_directory, write_json

_CONFIG = cli.define_config()
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "work directory, saved step, .safetensors or .pth file", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "directory for metrics.json", required=True)
_MULTI_SCALE = flags.DEFINE_bool("multi_scale", False, "average over scales and flips")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "where the prepared datasets are")
_SPLIT = flags.DEFINE_string("split", "val", "split of the dataset")


def main(_: list[str]) -> None:
    config = _CONFIG.value
    directory = make_directory(_OUTPUT.value)
    info = data.get_info(config.data.name)
    info.check_num_classes(config.model.num_classes)
    source = data.load_source(config.data.name, _SPLIT.value, _DATA_DIR.value)
    variables = convert.load(_CHECKPOINT.value, config.model)
    evaluate = evaluation.evaluator(config, source, multi_scale=_MULTI_SCALE.value)
    summary = evaluate(variables)
    if jax.process_index() > 0:
        return
    per_class = zip(info.classes, summary["iou"], summary["accuracy"], strict=True)
    write_json(
        directory / "metrics.json",
        {
            "experiment": config.name,
            "checkpoint": _CHECKPOINT.value,
            "dataset": config.data.name,
            "split": _SPLIT.value,
            "images": len(source),
            "protocol": evaluation.inference_protocol(config, multi_scale=_MULTI_SCALE.value),
            **{key: summary[key] for key in ("miou", "mean_accuracy", "overall_accuracy")},
            "classes": [
                {"name": name, "iou": _or_null(iou), "accuracy": _or_null(accuracy)}
                for name, iou, accuracy in per_class
            ],
        },
    )
    print(evaluation.markdown_table(summary, info.classes))


def _or_null(fraction: float) -> float | None:
    return None if math.isnan(fraction) else float(fraction)


if __name__ == "__main__":
    cli.run(main)
