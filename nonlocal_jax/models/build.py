"""Builds a Flax module from a flat mapping of plain values.

To add a network, write a function that returns a Flax module, and add it to ``NETWORKS``. Its
keyword arguments are the options. Their annotations determine which values are allowed.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax.backbones import ResNet
from nonlocal_jax.backbones.resnet import Remat
from nonlocal_jax.errors import InputError
from nonlocal_jax.models._options import check_options
from nonlocal_jax.models._parts import BLOCKS, choose
from nonlocal_jax.models.segmentation import SegmentationNet, segmentation
from nonlocal_jax.models.video import video

NETWORKS: dict[str, Callable[..., nn.Module]] = {"segmentation": segmentation, "video": video}

# The shape and type of an input, for tracing a network. Only ``convert`` needs it.
EXAMPLE_INPUTS = {
    "segmentation": jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),
    # Fewer frames or pixels would leave a block without keys.
    "video": jax.ShapeDtypeStruct((1, 16, 64, 64, 3), jnp.float32),
}


def _network(config: Mapping[str, Any]) -> str:
    if not hasattr(config, "keys"):
        raise InputError(f"the model config is {config!r}; use a mapping, such as config.model")
    if hasattr(config.get("model"), "keys"):
        raise InputError("the model config is that of an experiment; use its config.model")
    name = config.get("network", "segmentation")
    choose("network", name, NETWORKS)
    return name


def model_options(config: Mapping[str, Any]) -> dict[str, inspect.Parameter]:
    """Returns the options that a model config may set, each with its type and default.

    They are the keyword arguments of the network's function in ``NETWORKS``. Where the function
    takes ``**block_options``, the attributes of the block follow, with the prefix ``block_``.

    Raises:
      InputError: The network or the block is unknown.
    """
    build = NETWORKS[_network(config)]
    options = dict(inspect.signature(build, eval_str=True).parameters)
    if options.pop("block_options", None):
        name = config.get("block", options["block"].default)
        options |= _block_options(choose("block", name, {"none": None, **BLOCKS}))
    return options


def _block_options(block: type[nn.Module] | None) -> dict[str, inspect.Parameter]:
    """Returns the options of a block, with the prefix ``block_``. None has no options."""
    fields = {} if block is None else inspect.signature(block).parameters
    # Set by the network, by the user's own program, and by Flax.
    ours = (
        *("norm", "frames", "dtype", "precision", "param_dtype", "kernel_init"),
        *("axis_name", "parent", "name"),
    )
    return {f"block_{name}": field for name, field in fields.items() if name not in ours}


def _check_block(block: str, given: Collection[str], known: Collection[str]) -> None:
    """Refuses the options of other blocks, which remain if only ``block`` is changed."""
    of_blocks = {name for other in BLOCKS.values() for name in _block_options(other)}
    if others := [name for name in given if name in of_blocks and name not in known]:
        other, places = f"a network with block {block!r}", ""
        if block == "none":
            other = "a network without blocks (i3d_r50_baseline_32f, not nl_i3d_r50_5block_32f)"
            places = " and block_at" if "block_at" in given else ""
        raise InputError(
            f"block is {block!r}, which does not have the options {', '.join(others)}; use the "
            f"config of {other}, or remove these options{places}"
        )


def create_model(config: Mapping[str, Any], *, remat: Remat = "none") -> nn.Module:
    """Builds the network that a flat mapping of plain values describes.

    Args:
      config: Options of the network, see ``models.segmentation.segmentation`` and
        ``models.video.video``, and ``network``, a key of ``NETWORKS`` (default "segmentation").
        Lists are accepted for tuples, so a mapping that is read from JSON works.
      remat: The activations that the backward pass computes again instead of storing them: "none",
        those of the residual blocks ("blocks"), or of all parts of the network ("full"). The
        variables and the outputs are the same.

    Returns:
      A Flax Linen module.

    Raises:
      InputError: An option is unknown or missing, or a value is not allowed.
    """
    network, known = _network(config), model_options(config)
    options = {name: value for name, value in config.items() if name != "network"}
    model = f"network {network!r}"
    if "block" in known:
        block = options.get("block", known["block"].default)
        _check_block(block, options, known)
        model += f" with block {block!r}"
    check_options(options, known, model)
    model = NETWORKS[network](**options)
    if remat == "none":
        return model
    if not isinstance(getattr(model, "backbone", None), ResNet):
        raise InputError(f"remat is {remat!r}, but network {network!r} has no ResNet; use 'none'")
    heads = {"remat": remat == "full"} if isinstance(model, SegmentationNet) else {}
    return model.clone(backbone=model.backbone.clone(remat=remat), **heads)


def example_input(config: Mapping[str, Any]) -> jax.ShapeDtypeStruct | None:
    """Returns the shape and type of an input, or None if ``EXAMPLE_INPUTS`` has no entry.

    Raises:
      InputError: The network is unknown.
    """
    return EXAMPLE_INPUTS.get(_network(config))
