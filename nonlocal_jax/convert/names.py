"""The arrays of a model: their names, shapes and layouts in Flax and in PyTorch or Caffe2."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from nonlocal_jax.convert import (
    caffe2,
    mit_tsm,
    mmaction2,
    mmsegmentation,
    pyslowfast,
    torchvision,
)
from nonlocal_jax.convert.source import Row, Shapes, Source
from nonlocal_jax.errors import InputError, listing
from nonlocal_jax.models import BLOCKS, create_model, example_input

# Network, as in ``nonlocal_jax.models.NETWORKS`` -> the naming schemes of its PyTorch and Caffe2
# checkpoints. The names in a file determine which one reads it. Files are written with the first.
SOURCES: dict[str, tuple[Source, ...]] = {
    "segmentation": (mmsegmentation.SOURCE,),
    "video": (
        mmaction2.SOURCE,
        mit_tsm.SOURCE,
        pyslowfast.SOURCE,
        caffe2.SOURCE,
        torchvision.SOURCE,
    ),
}

# A kernel of this rank, [O, I, T, H, W] in PyTorch, has a time axis.
_RANK_WITH_TIME = 5


class Leaf(NamedTuple):
    """One array of a model.

    A kernel ``[*K, I, O]`` in Flax is ``[O, I, 1, ..., 1, *K]`` in PyTorch. The axes of
    length one extend it to ``rank`` axes. A vector ``[C]`` is ``[C, 1, ..., 1]``.

    Attributes:
      path: Path in Flax, collection first, such as "params/backbone/layer1_0/conv1/kernel".
      name: Name in PyTorch, such as "backbone.layer1.0.conv1.weight".
      shape: Shape in Flax.
      rank: Number of axes in PyTorch.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    rank: int

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """The shape in PyTorch."""
        channels, kernel = self.shape[:-3:-1], self.shape[:-2]
        return channels + (1,) * (self.rank - len(self.shape)) + kernel

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns a view in PyTorch's layout."""
        n = array.ndim
        if n > 1:
            array = array.transpose(n - 1, n - 2, *range(n - 2))
        return array.reshape(self.torch_shape)

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """Returns a view in Flax's layout."""
        n = len(self.shape)
        array = array.reshape(self.shape[:-3:-1] + self.shape[:-2])
        return array.transpose(*range(2, n), 1, 0) if n > 1 else array

    def inflate(self, array: np.ndarray) -> np.ndarray:
        """Inflates a kernel for images to this kernel for clips, which has a time axis.

        The kernel ``[O, I, H, W]`` is repeated T times and divided by T, so that a clip of equal
        frames has the features of one frame (I3D, arXiv:1705.07750). Other arrays are returned
        unchanged.
        """
        shape = self.torch_shape
        if len(shape) != _RANK_WITH_TIME or not jnp.issubdtype(array.dtype, jnp.floating):
            return array
        outputs, inputs, time, *size = shape
        if array.shape != (outputs, inputs, *size):
            return array
        return np.repeat(np.float64(array)[:, :, None] / time, time, axis=2)


def shapes(config: Mapping[str, Any]) -> Shapes | None:
    """Returns the shapes of a model's variables by Flax path, or None if its input is unknown.

    Raises:
      InputError: ``config`` does not describe a model.
    """
    model, example = create_model(config), example_input(config)
    if example is None:
        return None
    return _shapes(model, example)


def _shapes(model: nn.Module, example: jax.ShapeDtypeStruct) -> Shapes:
    variables = jax.eval_shape(model.init, jax.random.key(0), example)
    return {path: leaf.shape for path, leaf in flatten_dict(variables, sep="/").items()}


def known_shapes(config: Mapping[str, Any]) -> Shapes:
    """Returns the shapes of a model's variables by Flax path.

    Raises:
      InputError: ``config`` does not describe a model, or its input is unknown.
    """
    wanted = shapes(config)
    if wanted is None:
        raise InputError(
            f"the parameter shapes of the network {config['network']!r} are unknown; add an "
            "example input for it to nonlocal_jax.models.EXAMPLE_INPUTS"
        )
    return wanted


def sources(config: Mapping[str, Any]) -> tuple[Source, ...]:
    """Returns the naming schemes of a network's PyTorch and Caffe2 checkpoints.

    Raises:
      InputError: There is no naming scheme for this network.
    """
    network = config.get("network", "segmentation")
    if network not in SOURCES:
        raise InputError(
            f"there is no table of PyTorch names for the network {network!r}; add one to "
            "nonlocal_jax.convert.SOURCES, or use reinit_head=False and load a work "
            "directory or a .safetensors file that experiments.convert wrote"
        )
    return SOURCES[network]


def identify(
    name: object, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[Source, dict[str, np.ndarray]]:
    """Returns the source that knows most of the names, and the arrays with the names of its table.

    Raises:
      InputError: There is no naming scheme for this network, or several arrays of the source get
        the same name.
    """

    def known(source: Source) -> int:
        pattern = re.compile(f"{source.backbone}|{source.head}")
        renamed = (_plain_name(old, source.renames) for old in arrays)
        return sum(new is not None and pattern.match(new) is not None for new in renamed)

    source = max(sources(config), key=known)  # the first of several
    return source, plain(name, arrays, source.renames)


def leaves(config: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """Returns all arrays of the model that ``config`` describes, with the names of written files.

    Raises:
      InputError: ``config`` does not describe a model, or there is no naming scheme for its
        network.
    """
    source, wanted = sources(config)[0], known_shapes(config)
    table = source.rows(config)
    return tuple(_leaf(path, shape, table, source.separator) for path, shape in wanted.items())


def leaves_of(
    source: Source, config: Mapping[str, Any], table_config: Mapping[str, Any]
) -> tuple[Leaf, ...]:
    """Returns all arrays of the model that ``config`` describes, with the names of a source.

    An array without a name there has its path as its name. Other code bases do not have all blocks.

    Args:
      source: The source.
      config: The model config.
      table_config: The model config of the checkpoint, as far as the names depend on it.

    Raises:
      InputError: ``config`` does not describe a model.
    """
    table = source.rows(table_config)
    return tuple(
        _leaf(path, shape, table, source.separator, default=path)
        for path, shape in known_shapes(config).items()
    )


def block_rows(block: nn.Module) -> tuple[Row, ...]:
    """Returns the table of the modules of one block, with names relative to the block.

    Raises:
      InputError: There is no naming scheme for this block.
    """
    for name, kind in BLOCKS.items():
        if isinstance(block, kind):
            options = {k: getattr(block, k) for k in ("sub_sample", "output") if hasattr(block, k)}
            return mmsegmentation.block_rows(name, **options)
    raise InputError(
        f"there is no table of PyTorch names for the block {type(block).__name__}; use one of "
        f"{', '.join(kind.__name__ for kind in BLOCKS.values())}"
    )


def block_leaves(block: nn.Module, channels: int) -> tuple[Leaf, ...]:
    """Returns all arrays of one block with C ``channels``. Names are relative to the block.

    Raises:
      InputError: There is no naming scheme for this block, or its attributes are wrong.
    """
    table = block_rows(block)
    if hasattr(block, "implementation"):  # some refuse the number of channels
        block = block.clone(implementation="auto")
    clip = jax.ShapeDtypeStruct((1, 2, 2, 2, channels), jnp.float32)  # suits all attributes
    return tuple(_leaf(path, shape, table) for path, shape in _shapes(block, clip).items())


def plain(
    name: object, arrays: Mapping[str, np.ndarray], renames: Sequence[tuple[str, str]] = ()
) -> dict[str, np.ndarray]:
    """Removes prefixes of parallel wrappers, counters and second copies of averaged weights.

    Raises:
      InputError: Several arrays get the same name.
    """
    found, collisions = {}, []
    for old, array in arrays.items():
        new = _plain_name(old, renames)
        if new is None:
            continue
        if new in found:
            collisions.append(f"{old} also maps to {new}")
        found[new] = array
    if collisions:
        raise InputError(
            f"{name} has several arrays that map to the same parameter:{listing(collisions)}\n"
            "for each parameter, keep only one of its arrays"
        )
    return found


def _plain_name(name: str, renames: Sequence[tuple[str, str]]) -> str | None:
    name = re.sub(r"^module\.", "", name)
    if name.endswith("num_batches_tracked") or name.startswith("ema_"):
        return None
    for pattern, replacement in renames:
        name = re.sub(rf"^{pattern}", replacement, name)
    return name


def _leaf(
    path: str,
    shape: tuple[int, ...],
    table: tuple[Row, ...],
    separator: str = ".",
    default: str | None = None,
) -> Leaf:
    module, _, leaf = path.partition("/")[2].rpartition("/")
    for pattern, name, kind in table:
        match = re.fullmatch(pattern, module)
        if match and leaf in kind:
            torch_leaf, rank = kind[leaf]
            torch_name = f"{match.expand(name)}{separator}{torch_leaf}"
            return Leaf(path, torch_name.removeprefix(separator), shape, rank)
    if default is None:
        raise LookupError(f"the table has no row for {path}")
    return Leaf(path, default, shape, len(shape))
