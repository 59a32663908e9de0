"""Conventions shared by every operation: accumulation type, padding, shape errors."""

import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError


def float32_or_more(*arrays: jax.Array) -> jnp.dtype:
    """The type to accumulate in: float32, or float64 for float64."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def at_least_float32(x: jax.Array) -> jax.Array:
    """Widens half precision to float32 and leaves float32 and float64 as they are."""
    return x.astype(float32_or_more(x))


def zero_padding(mask: jax.Array | None, x: jax.Array) -> jax.Array:
    """``[..., M, C]`` with zeros where the mask ``[..., M]`` is False, whatever was there."""
    return x if mask is None else jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))


def vary_alike(*arrays: jax.Array | None) -> list[jax.Array | None]:
    """Inside a ``jax.shard_map``, arrays that all vary over the axes that one of them varies over.

    Where queries are split and keys are not, the gradients of the keys are then summed up.
    """
    axes = [frozenset() if x is None else jax.typeof(x).manual_axis_type.varying for x in arrays]
    union = frozenset().union(*axes)
    return [
        x if x is None or own == union else jax.lax.pcast(x, tuple(union - own), to="varying")
        for x, own in zip(arrays, axes, strict=True)
    ]


def over_devices(x: jax.Array, axis_name: str | None) -> jax.Array:
    """The sum over the devices that share the positions."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def count_positions(x: jax.Array, mask: jax.Array | None, axis_name: str | None) -> jax.Array | int:
    """How many positions of ``[..., M, C]`` are not padding, over all devices: ``[..., 1, 1]``.

    At least one, so that a map of nothing but padding has sums of zero and means of zero.
    """
    if mask is None:
        return x.shape[-2] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    number = jnp.sum(mask, axis=-1, dtype=float32_or_more(x))[..., None, None]
    return jnp.maximum(over_devices(number, axis_name), 1)


def check_mask(mask: jax.Array | None, positions: tuple[int, ...], name: str = "mask") -> None:
    """Requires a boolean ``[..., M]``, or none.

    Raises:
      InputError: quoting the type or both shapes.
    """
    if mask is None:
        return
    if mask.dtype != bool:
        raise InputError(f"{name} must be boolean, False where a position is padding")
    if mask.shape != positions:
        raise InputError(f"{name} must be {positions}, one entry a position; got {mask.shape}")


def check_positions(theta: jax.Array, phi: jax.Array, g: jax.Array) -> None:
    """Requires queries ``[..., N, C]``, keys ``[..., M, C]`` and values ``[..., M, D]``.

    Raises:
      InputError: quoting the three shapes.
    """
    shapes = f"theta {theta.shape}, phi {phi.shape}, g {g.shape}"
    if min(theta.ndim, phi.ndim, g.ndim) < 2:
        raise InputError(f"need theta [..., N, C], phi [..., M, C], g [..., M, D]; got {shapes}")
    if theta.shape[-1] != phi.shape[-1]:
        raise InputError(f"theta and phi must have the same width C; got {shapes}")
    if phi.shape[-2] != g.shape[-2]:
        raise InputError(f"phi and g must have the same number of positions M; got {shapes}")
    if not theta.shape[:-2] == phi.shape[:-2] == g.shape[:-2]:
        raise InputError(f"theta, phi and g must have the same leading dimensions; got {shapes}")
    if min(theta.shape[-2], phi.shape[-2]) < 1:
        raise InputError(f"need at least one query and one key; got {shapes}")
