"""Reads the attention of a block from a network."""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from nonlocal_jax import ops
from nonlocal_jax.blocks import NonLocalBlock
from nonlocal_jax.errors import InputError

# The arguments of a model's call that choose inference.
_INFERENCE = {"train": False, "deterministic": True}

_ORDERS = {1: "(index,)", 2: "(row, column)", 3: "(frame, row, column)"}


def attention_map(
    model: nn.Module,
    variables: Mapping[str, Any],
    inputs: jax.Array,
    position: Sequence[int],
    block: str | None = None,
    *,
    mask: jax.Array | None = None,
    call: int = 0,
) -> np.ndarray:
    """Returns the attention weights of one position of a sequence, an image or a clip.

    They are one row of the attention matrix of a non-local block. The other rows are not computed.
    For position i, the weight of position j is f(x_i, x_j) / Z_i with the symbols of
    ``NonLocalBlock``::

        mode                               weight                        range
        "gaussian", "embedded_gaussian"    softmax over j of the logits  0 to 1, the sum is 1
        "dot_product"                      theta_i . phi_j / M           any number
        "concatenation"                    ReLU(w . [theta_i, phi_j])/M  0 or more

    For a disentangled block they are A_ij, the softmax of the pairwise term. The unary term is the
    same for all positions.

    The model is a block, or a network with blocks. It is called as ``model(inputs)``, with
    ``train=False`` or ``deterministic=True`` if its call has such an argument.

    Args:
      model: The block or the network. The feature map of the block must have as many axes as the
        inputs.
      variables: Variables of the model.
      inputs: One sequence ``[1, L, C]``, image ``[1, H, W, C]`` or clip ``[1, T, H, W, C]``.
      position: (index,) in the sequence, (row, column) in the image, or (frame, row, column) in the
        clip.
      block: Path of the block in the model, such as "decode_head/block". Default: the only block of
        the model.
      mask: The argument ``mask`` of the model's call, such as the mask ``[1, *S]`` of a block.
      call: The number of the block's call, if the model calls it several times. The layers of
        ``nn.scan`` are counted as calls. ``nn.scan`` must have
        ``variable_axes={"intermediates": 0}``.

    Returns:
      Weights ``[L']``, ``[H', W']`` or ``[T', H', W']``, the size of the block's keys. Where the
      keys are padding, they are zero. For a block with ``axes="space"``, they are zero in all other
      frames. For a block with ``axes="time"``, they are zero at all other places. For a block with
      ``frames``, they are zero in the frames of other groups.

    Raises:
      InputError: The inputs have the wrong shape, the position is outside them, the model has no
        such block or call, it has several blocks and ``block`` is None, or it takes no mask.
    """
    if inputs.ndim - 2 not in _ORDERS or inputs.shape[0] != 1:
        raise InputError(
            f"inputs have the shape {inputs.shape}; "
            "use one sequence [1, L, C], image [1, H, W, C] or clip [1, T, H, W, C]"
        )
    size = inputs.shape[1:-1]
    numbers = np.asarray(position)
    is_inside = numbers.dtype.kind in "iu" and numbers.shape == (len(size),)
    if not is_inside or (numbers < 0).any() or (numbers >= size).any():
        raise InputError(
            f"position {position} is outside the input; use {_ORDERS[len(size)]} from "
            f"{(0,) * len(size)} to {tuple(s - 1 for s in size)}"
        )
    record = _record(model, variables, inputs, mask, block, call)
    index = tuple(p * n // s for p, n, s in zip(position, record.query.shape, size, strict=False))
    # Index of the keys that the query attends to.
    related: tuple = ()
    if len(size) == 3:
        frames = record.relation.frames or len(record.query)
        first = index[0] // frames * frames
        along = {
            "spacetime": (slice(first, first + frames),),
            "space": index[:1],
            "time": (slice(None), *index[1:]),
        }
        related = along[record.relation.axes]
    keys = record.key[related]
    valid = np.ones(keys.shape[:-1], bool) if record.mask is None else record.mask[related]
    found = np.zeros(record.key.shape[:-1], record.key.dtype)
    found[related] = _weights(record.relation.mode, record.query[index], keys, valid)
    return found


def _weights(mode: str, query: np.ndarray, keys: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Returns the weights ``[*S]`` of keys ``[*S, C]`` with the mask ``valid`` for one query."""
    if mode in ("gaussian", "embedded_gaussian"):
        flat = keys.reshape(-1, keys.shape[-1])
        weights = ops.attention_weights(query[None], flat, mask=valid.reshape(-1))
        weights = np.asarray(weights).reshape(valid.shape)
    else:
        f = keys @ query if mode == "dot_product" else np.maximum(keys[..., 0] + query[0], 0)
        weights = f / max(valid.sum(), 1)
    return np.where(valid, weights, 0)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Relation:
    """The attributes of a block that determine the weights."""

    mode: str
    axes: str
    frames: int | None


class _Record(NamedTuple):
    """What the calls of a block record: ``[B, *S, C]`` in tuples, or ``[*S, C]`` of one call."""

    query: Any
    key: Any
    mask: Any
    relation: _Relation


def _record(
    model: nn.Module,
    variables: Mapping[str, Any],
    inputs: jax.Array,
    mask: jax.Array | None,
    block: str | None,
    call: int,
) -> _Record:
    """Returns what one call of a block records, as NumPy arrays without the axis of the batch."""
    accepted = inspect.signature(type(model).__call__).parameters
    if mask is not None and "mask" not in accepted:
        raise InputError(
            f"the call of {type(model).__name__} has no argument mask; use mask=None, or a model "
            "that passes a mask to its blocks"
        )
    # By position where possible, because ``nn.remat`` and ``nn.jit`` refuse static keywords.
    positional = [
        p.name
        for p in itertools.takewhile(lambda p: p.name in _INFERENCE, [*accepted.values()][2:])
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    arguments = tuple(_INFERENCE[name] for name in positional)
    options = tuple(
        (name, value)
        for name, value in _INFERENCE.items()
        if name in accepted and name not in positional
    )
    try:
        hash(model)
        run = _records
    except TypeError:  # jit cannot find the compiled function of such a model again
        run = _records.__wrapped__
    arrays = {"mask": mask} if mask is not None else {}
    records = run(variables, inputs, arrays, model=model, arguments=arguments, options=options)

    if not records:
        raise InputError(
            "no block of the model has a separate attention map for each position; use a "
            "nonlocal or disentangled_nonlocal block"
        )
    if (block is None and len(records) > 1) or block not in (None, *records):
        wrong = "there are several blocks" if block is None else f"there is no block {block!r}"
        raise InputError(f"{wrong}; set block to {' or '.join(records)}")
    path = next(iter(records)) if block is None else block
    record, ndim = records[path], inputs.ndim
    shape = record.query[0].shape[-ndim:]
    if len(shape) < ndim or shape[0] != 1:
        raise InputError(
            f"the block {path!r} has a feature map of shape {record.query[0].shape}, whose axes "
            f"are not those of the inputs of shape {inputs.shape}; use the block as the model, "
            "with its feature map as the inputs"
        )
    queries, keys = (_calls(x, ndim) for x in (record.query, record.key))
    masks = [None] * len(queries) if record.mask is None else _calls(record.mask, ndim - 1)
    if len(masks) != len(queries):
        raise InputError(f"only some calls of the block {path!r} have a mask; use a mask for all")
    if not 0 <= call < len(queries):
        raise InputError(
            f"call is {call}, but there are {len(queries)} calls of the block {path!r}; use 0 to "
            f"{len(queries) - 1}"
        )
    return record._replace(query=queries[call], key=keys[call], mask=masks[call])


def _calls(sown: Sequence[jax.Array], ndim: int) -> list[np.ndarray]:
    """Returns the maps ``[*S, C]`` of all calls. ``nn.scan`` stacks those of its layers."""
    stacks = [np.asarray(x).reshape(-1, *x.shape[1 - ndim :]) for x in sown]
    return [x for stack in stacks for x in stack]


@functools.partial(jax.jit, static_argnames=("model", "arguments", "options"))
def _records(
    variables: Mapping[str, Any],
    inputs: jax.Array,
    arrays: Mapping[str, jax.Array],
    *,
    model: nn.Module,
    arguments: tuple[bool, ...],
    options: tuple[tuple[str, bool], ...],
) -> dict[str, _Record]:
    """Returns what the non-local blocks of the model record, by path."""

    def sow_relation(method, args, kwargs, context):
        if isinstance(context.module, NonLocalBlock) and context.method_name == "__call__":
            block = context.module
            relation = _Relation(block.mode, block.axes, block.frames)
            block.sow("intermediates", "relation", relation)
        return method(*args, **kwargs)

    # ``sow`` would append to the records of an earlier call.
    variables = {name: x for name, x in variables.items() if name != "intermediates"}
    # The second name keeps ``nn.jit`` from using a trace without relations.
    mutable = ["intermediates", "relations"]
    with nn.intercept_methods(sow_relation):
        _, state = model.apply(
            variables, inputs, *arguments, **arrays, **dict(options), mutable=mutable
        )
    sown = flatten_dict(dict(state.get("intermediates", {})))
    return {
        "/".join(path): _Record(
            *(sown.get((*path, name)) for name in ("query", "key", "key_mask")), value[0]
        )
        for (*path, name), value in sown.items()
        if name == "relation"
    }
