"""Conventions shared by every operation: accumulation type and shape errors."""

import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError


def at_least_float32(x: jax.Array) -> jax.Array:
    """Widens half precision to float32 and leaves float32 and float64 as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_positions(theta: jax.Array, phi: jax.Array, g: jax.Array) -> None:
    """Requires queries ``[..., N, C]``, keys ``[..., M, C]`` and values ``[..., M, D]``.

    Raises:
      ValueError: quoting the three shapes.
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
