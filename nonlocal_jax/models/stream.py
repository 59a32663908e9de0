"""Video networks on a stream, one frame at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError
from nonlocal_jax.models.video import VideoNet
from nonlocal_jax.ops._numerics import check_floating

State = Mapping[str, Any]
Size = tuple[int, int]


class Stream(NamedTuple):
    """A video network on a stream, as two pure functions.

    Attributes:
      reset: ``reset(batch, size) -> state``, the state before the first frame of ``batch`` streams
        whose frames have ``size`` (height, width). The frame before the first one counts as zeros.
      step: ``step(state, frame) -> (state, logits)``, for the next frame of each stream.
        ``frame`` is ``[B, H, W, 3]``, normalized like the clips of the network. The logits are
        ``[B, classes]``, at least float32. It is jitted, and can be used in ``jax.jit``,
        ``jax.vmap`` and ``jax.lax.scan``. The old state stays valid.
    """

    reset: Callable[[int, Size], State]
    step: Callable[[State, jax.Array], tuple[State, jax.Array]]


def stream(model: nn.Module, variables: Mapping[str, Any]) -> Stream:
    """Prepares a video network for streams, such as those of cameras.

    The network must be a TSM with ``shift="past"`` and without other layers over frames. The state
    contains the shifted channels of the previous frame, an eighth of the input of each residual
    block that shifts, and nothing else. A step computes each layer for one frame. Its logits are
    those of this frame in the clip of all frames since ``reset``::

        reset, step = stream(model, variables)
        state = reset(batch, (height, width))
        for t in range(clips.shape[1]):
            state, logits = step(state, clips[:, t])
        # logits == model.apply(variables, clips, window=(1, None, None))[:, t, 0, 0]

    Source: Lin et al., TSM (arXiv:1811.08383), section 4.2.

    Args:
      model: The network, which ``create_model`` returns for ``"network": "video"``.
      variables: Its parameters and statistics. Frames are converted to the type of the parameters.

    Raises:
      InputError: The network cannot process a stream, or the variables have no parameters. The
        message says why. ``step`` raises it if the frame has a wrong shape or type, or the state
        does not fit.
    """
    _check(model)
    if "params" not in variables:
        raise InputError("the variables have no 'params'; use those of model.init or convert.load")
    dtype = jnp.result_type(jax.tree.leaves(variables["params"])[0])

    def apply(variables, state, frame):
        clip = frame[:, None].astype(dtype)
        logits, new = model.apply({**variables, "stream": state}, clip, mutable=["stream"])
        return new.get("stream", {}), logits

    def shapes(frame):
        return jax.eval_shape(apply, variables, {}, frame)[0]

    @jax.jit
    def jitted(variables, state, frame):
        # This runs once for each shape.
        if jax.tree.map(jnp.shape, state) != jax.tree.map(jnp.shape, shapes(frame)):
            size = frame.shape[0], frame.shape[1:3]
            raise InputError(
                f"the state does not fit a frame of shape {frame.shape}; use the state of "
                f"reset{size}, or of the previous step with frames of this shape"
            )
        return apply(variables, state, frame)

    def reset(batch: int, size: Size) -> State:
        if not isinstance(size, Sequence) or len(size) != 2:
            raise InputError(f"size is {size}; use (height, width)")
        state = shapes(jax.ShapeDtypeStruct((batch, *size, 3), dtype))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)

    def step(state: State, frame: jax.Array) -> tuple[State, jax.Array]:
        check_floating(frame=frame)
        if frame.ndim != 4 or frame.shape[-1] != 3:
            raise InputError(
                f"frame has shape {frame.shape}; use one normalized RGB frame of each stream, "
                "[B, H, W, 3]"
            )
        return jitted(variables, state, frame)

    return Stream(reset, step)


def _check(model: nn.Module) -> None:
    """Requires that the shift from the past is the only layer that relates frames."""
    if not isinstance(model, VideoNet):
        raise InputError(
            f"the model is a {type(model).__name__}; use a network of config.model.network='video'"
        )
    backbone, time = model.backbone, model.backbone.temporal
    sizes = ("conv1_frames", "conv1_stride", "pool1_frames", "pool1_stride", "pool2_frames")
    problems = [
        *(f"{name} is {getattr(time, name)}" for name in sizes if getattr(time, name) > 1),
        *([f"inflate_at is {time.inflate_at}"] if time.inflate_at else []),
        *([f"block_at is {tuple(backbone.block_at)}"] if backbone.block_at else []),
        *([f"shift is {time.shift!r}"] if time.shift_at and time.shift != "past" else []),
    ]
    if problems:
        raise InputError(
            f"this network cannot process a stream, because {', '.join(problems)}, which needs "
            "later frames or more than one earlier frame; use a TSM that was trained with "
            "shift='past', without blocks and other layers over frames"
        )
