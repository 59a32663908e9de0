"""The temporal shift of TSM."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError

Shift = Literal["both", "past"]


def temporal_shift(
    x: jax.Array,
    *,
    direction: Shift = "both",
    division: int = 8,
    previous: jax.Array | None = None,
) -> jax.Array:
    """Shifts some channels of a clip by one frame.

    With F = C // ``division``::

        direction  channels    y[t]      frame without a neighbor
        "both"     0 to F      x[t + 1]  last: zeros
                   F to 2F     x[t - 1]  first: zeros
        "past"     0 to F      x[t - 1]  first: ``previous``, or zeros

    All other channels are unchanged. "past" reads no later frame, so a stream can be processed
    frame by frame: ``previous`` of a frame is ``x[:, -1, ..., :F]`` of the frame before it.

    Source: Lin et al., TSM (arXiv:1811.08383), section 3.2, with the order of the channels of the
    authors' code. Both directions together shift a quarter of the channels.

    Args:
      x: Clip ``[B, T, *S, C]``.
      direction: "both" or "past".
      division: The number C / F.
      previous: The first F channels of the frame before x, ``[B, *S, F]``, if x continues a clip.
        Only for "past".

    Returns:
      ``[B, T, *S, C]``.

    Raises:
      InputError: The shape or an option is wrong.
    """
    if direction not in get_args(Shift):
        raise InputError(f"direction is {direction!r}; use 'both' or 'past'")
    if x.ndim < 3 or division < 2:
        raise InputError(
            f"x has shape {x.shape} and division is {division}; use a clip [B, T, *S, C] and a "
            "division of 2 or more"
        )
    fold = x.shape[-1] // division
    if previous is not None:
        if direction != "past":
            raise InputError(f"direction is {direction!r}; use 'past' with previous")
        expected = x[:, 0, ..., :fold].shape
        if previous.shape != expected:
            raise InputError(
                f"previous has shape {previous.shape}, but x has shape {x.shape}; use the shape "
                f"{expected}"
            )
    earlier = jnp.pad(x[:, :-1], [(0, 0), (1, 0), *[(0, 0)] * (x.ndim - 2)])  # x[t - 1]
    if direction == "past":
        earlier = earlier[..., :fold]
        if previous is not None:
            earlier = jnp.concatenate([previous[:, None], earlier[:, 1:]], axis=1)
        return jnp.concatenate([earlier, x[..., fold:]], axis=-1)
    later = jnp.pad(x[:, 1:], [(0, 0), (0, 1), *[(0, 0)] * (x.ndim - 2)])  # x[t + 1]
    parts = later[..., :fold], earlier[..., fold : 2 * fold], x[..., 2 * fold :]
    return jnp.concatenate(parts, axis=-1)
