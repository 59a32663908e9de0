"""Imports a PyTorch or Caffe2 checkpoint as a .safetensors file, or exports a .pth file.

    python -m experiments.convert --source=FILE.pth --output=FILE.safetensors \\
        --config=configs/segmentation.py:nonlocal_r50-d8_512x1024_40k_cityscapes
    python -m experiments.convert --reverse --source=PATH --output=FILE.pth --config=...

PATH is the work directory of a training run, a saved step in it, a .safetensors file, a .pth file
or a .pkl file of Caffe2. --reinit-head initializes the classifiers, for data with other classes.
--new-blocks initializes the blocks. Neither PyTorch nor Caffe2 is needed.

A .safetensors file contains the names and the colors of the classes: those of PATH, or for a
file of PyTorch or Caffe2, those of the dataset --config.data.name.
"""

import pathlib
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from experiments import cli
from nonlocal_jax import convert, data
from nonlocal_jax.errors import InputError

_CONFIG = cli.define_config()
_SOURCE = flags.DEFINE_string("source", None, "Checkpoint to read.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "File to write.", required=True)
_REVERSE = flags.DEFINE_boolean("reverse", False, "Whether to write a .pth file for PyTorch.")
_REINIT_HEAD = flags.DEFINE_boolean(
    "reinit_head", False, "Whether to initialize the classifiers instead of reading them."
)
_NEW_BLOCKS = flags.DEFINE_boolean(
    "new_blocks", False, "Whether to initialize the blocks instead of reading them."
)
_ALLOW_NON_FINITE = cli.define_allow_non_finite()


def _dataset(source: str, config: ConfigDict) -> dict[str, Any] | None:
    """Returns the classes for the output: those of the source, or for a file, of the config."""
    dataset = convert.read_dataset(source)
    known = data.DATASETS.get(config.data.name)
    if dataset is None and known is not None and pathlib.Path(source).is_file():
        fits = len(known.classes) == config.model.num_classes
        dataset = known.to_json() if fits else None
    return dataset


def main(_: list[str]) -> None:
    config = _CONFIG.value
    model_config = config.model
    output = pathlib.Path(_OUTPUT.value)
    suffix = ".pth" if _REVERSE.value else ".safetensors"
    if output.suffix != suffix:
        raise InputError(f"--output is {output}; use a path that ends in {suffix}")
    dataset = None if _REINIT_HEAD.value else _dataset(_SOURCE.value, config)
    fresh = {"reinit_head": _REINIT_HEAD.value, "new_blocks": _NEW_BLOCKS.value}
    variables = convert.load(
        _SOURCE.value, model_config, **fresh, allow_non_finite=_ALLOW_NON_FINITE.value
    )
    if _REVERSE.value:
        convert.export_torch(output, variables, model_config)
    else:
        convert.save(output, variables, model_config, dataset=dataset)
    params = sum(x.size for x in jax.tree.leaves(variables["params"]))
    arrays = len(jax.tree.leaves(variables))
    print(f"wrote {output}: {arrays} arrays, {params:,} parameters")


if __name__ == "__main__":
    cli.run(main)
