"""Checkpoint files of video networks, and their variables in float64."""

import re

import numpy as np

from nonlocal_jax.convert import _variables, checkpoints
from tests.convert import python2


def written(path, content, dumps=python2.dumps, protocol=2):
    path.write_bytes(dumps(content, protocol))
    return path


def in_float64(path, config, **options):
    """``convert.load`` without the final rounding to float32."""
    options = {"reinit_head": False, "new_blocks": False, "seed": 0, "dtype": np.float64} | options
    return _variables.from_torch(path, checkpoints.read_file(path)[0], config, **options)


def as_mit(arrays, seed=0):
    """A state dict of mmaction2 with MIT's names, and with biases in front of the blocks' norms."""
    rng, renamed = np.random.default_rng(seed), {}
    for name, array in arrays.items():
        for pattern, replacement in (
            (r"^backbone\.", "base_model."),
            (r"^cls_head\.fc_cls\.", "new_fc."),
            (r"\.non_local_block\.conv_out\.conv\.", ".nl.W.0."),
            (r"\.non_local_block\.conv_out\.bn\.", ".nl.W.1."),
            (r"\.non_local_block\.(theta|phi|g)(\.0)?\.conv\.", r".nl.\1\2."),
            (r"\.downsample\.conv\.", ".downsample.0."),
            (r"\.downsample\.bn\.", ".downsample.1."),
            (r"\bconv(\d)\.bn\.", r"bn\1."),
            (r"\bconv(\d)\.conv\.(net\.)?", r"conv\1.\2"),
        ):
            name = re.sub(pattern, replacement, name)
        renamed[f"module.{name}"] = array
    for name in [name for name in renamed if name.endswith(".nl.W.1.running_mean")]:
        bias = rng.standard_normal(renamed[name].shape)
        renamed[name] = renamed[name] + bias
        renamed[name.replace("1.running_mean", "0.bias")] = bias
    return renamed
