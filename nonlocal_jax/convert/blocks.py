"""Loads the variables of one block from a state dict of PyTorch, and returns them to one."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import unflatten_dict

from nonlocal_jax._files import PathLike
from nonlocal_jax.convert import _fit as fit
from nonlocal_jax.convert import _variables, names
from nonlocal_jax.convert.checkpoints import read_file
from nonlocal_jax.convert.mmsegmentation import BLOCK_OUTPUTS
from nonlocal_jax.errors import InputError

_TARGET = "block"


def load_block(
    path: PathLike, block: nn.Module, prefix: str = "", *, allow_non_finite: bool = False
) -> dict[str, Any]:
    """Loads the variables of one block from a checkpoint of PyTorch.

    The checkpoint is a ``.pth`` or ``.safetensors`` file with the state dict of only the block, or
    of a network that contains it. ``load`` describes the files, and ``block_from_torch`` the names.

    Args:
      path: The file.
      block: The block, such as ``NonLocalBlock(sub_sample=True)``.
      prefix: What precedes the block's names in the file, such as "decode_head.nl_block.".
      allow_non_finite: Whether to accept values that are NaN or infinite.

    Returns:
      See ``block_from_torch``.

    Raises:
      InputError: The file cannot be read or is damaged, contains anything but tensors, or does not
        fit the block. The message lists all names that do not fit.
    """
    return _from_torch(path, read_file(path)[0], block, prefix, allow_non_finite)


def block_from_torch(
    state_dict: Mapping[str, np.ndarray],
    block: nn.Module,
    prefix: str = "",
    *,
    allow_non_finite: bool = False,
) -> dict[str, Any]:
    """Returns the variables of one block from a state dict of NumPy arrays.

    The names are those of these modules::

        block                      modules of PyTorch
        NonLocalBlock              mmcv.cnn.NonLocal1d, NonLocal2d, NonLocal3d
        DisentangledNonLocalBlock  DisentangledNonLocal2d of mmsegmentation
        GlobalContextBlock         mmcv.cnn.ContextBlock

    Any norm of a non-local block has the name of its batch norm, ``conv_out.bn``. A disentangled
    block with ``output="factor"`` has the names of its authors' code (``conv_query``, ``conv_key``,
    ``conv_value``, ``conv_mask`` and ``gamma``).

    The attributes of the block must describe the same function as the options of the module in
    PyTorch. The names and shapes only determine some of them, such as ``reduction``, but not
    ``mode`` or ``use_scale``. The number of channels is read from the state dict.

    Args:
      state_dict: Arrays by name. Other names than those with the prefix are ignored. Names may
        begin with "module.", and ``num_batches_tracked`` may be missing.
      block: The block, such as ``NonLocalBlock(sub_sample=True)``.
      prefix: What precedes the block's names, such as "decode_head.nl_block.".
      allow_non_finite: Whether to accept values that are NaN or infinite.

    Returns:
      ``{"params": ..., "batch_stats": ...}`` for ``block.apply``, nested dicts of float32 NumPy
      arrays. There are no ``batch_stats`` if the block has no batch norm.

    Raises:
      InputError: There is no such block in the state dict, or it does not fit. The message lists
        all names that are missing, are not in the block or have a different shape or type.
    """
    return _from_torch("the state dict", state_dict, block, prefix, allow_non_finite)


def block_to_torch(
    variables: Mapping[str, Any], block: nn.Module, ndim: int = 2
) -> dict[str, np.ndarray]:
    """Returns the variables of one block with PyTorch's names and layout.

    It is the inverse of ``block_from_torch``. There is no ``num_batches_tracked``. ``batch_stats``
    may be left out, as in ``to_torch``.

    Args:
      variables: Variables of the block.
      block: The block.
      ndim: The number of axes of the convolutions in PyTorch, 3 for ``NonLocal3d``.

    Raises:
      InputError: The variables do not fit the block.
    """
    channels = _channels(fit.flatten(variables, None), block)
    if channels is None:
        raise InputError(
            f"the variables contain no {type(block).__name__}; use the variables that block.init "
            'returns, {"params": ...}'
        )
    leaves = [
        leaf._replace(rank=ndim + 2) if leaf.path.endswith("/kernel") else leaf
        for leaf in names.block_leaves(block, channels)
        if leaf.path.partition("/")[0] in variables
    ]
    arrays = fit.flatten(variables, {leaf.path: leaf.shape for leaf in leaves}, _TARGET)
    return {leaf.name: leaf.to_torch(arrays[leaf.path]) for leaf in leaves}


def _from_torch(
    name: object,
    arrays: Mapping[str, np.ndarray],
    block: nn.Module,
    prefix: str,
    allow_non_finite: bool,
) -> dict[str, Any]:
    arrays = names.plain(name, arrays)
    inside = {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}
    channels = _channels(inside, block)
    if channels is None:
        ends = _outputs(block)
        places = {k.removesuffix(end) for k in arrays for end in ends if k.endswith(f".{end}")}
        advice = f"set prefix to {' or '.join(sorted(places))}" if places else "use another file"
        raise InputError(
            f"{name} has no {type(block).__name__} with the prefix {prefix!r}; {advice}"
        )
    leaves = {leaf.name: leaf for leaf in names.block_leaves(block, channels)}
    # Convolutions of sequences, images and clips differ in their axes of length one.
    leaves |= {k: leaves[k]._replace(rank=x.ndim) for k, x in inside.items() if k in leaves}
    fit.check(name, inside, {k: leaf.torch_shape for k, leaf in leaves.items()}, target=_TARGET)
    return unflatten_dict(_variables.copies(name, inside, leaves, allow_non_finite), sep="/")


def _outputs(block: nn.Module) -> dict[str, str]:
    """Returns the kernels with C outputs, by name in PyTorch: their paths in Flax."""
    return {
        f"{name}.weight": f"params/{path}/kernel"
        for path, name, _ in names.block_rows(block)
        if name in BLOCK_OUTPUTS
    }


def _channels(arrays: Mapping[str, np.ndarray], block: nn.Module) -> int | None:
    """Returns C of the block's arrays, or None if there is none of them.

    Args:
      arrays: Arrays by name in PyTorch or by path in Flax.
      block: The block.
    """
    for name, path in _outputs(block).items():
        for key, axis in ((name, 0), (path, -1)):
            if key in arrays and arrays[key].ndim:
                return arrays[key].shape[axis]
    return None
