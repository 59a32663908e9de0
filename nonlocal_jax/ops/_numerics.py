"""Helpers of all operations: the type to accumulate in, padding, checks of shapes."""

import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError


def promoted_dtype(*arrays: jax.Array | jnp.dtype) -> jnp.dtype:
    """``jnp.result_type``, also where ``jax_numpy_dtype_promotion`` is "strict"."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*arrays)


def float32_or_more(*arrays: jax.Array) -> jnp.dtype:
    """The type to accumulate in: float64 if any array is float64, else float32."""
    return promoted_dtype(promoted_dtype(*arrays), jnp.float32)


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts half precision to float32, and does not change float32 and float64."""
    return x.astype(float32_or_more(x))


def with_sizes_known(*arrays: jax.Array) -> bool:
    """Whether all sizes are numbers. ``jax.export`` also has symbolic sizes."""
    return all(isinstance(n, int) for x in arrays for n in x.shape)


def zero_padding(mask: jax.Array | None, x: jax.Array) -> jax.Array:
    """Sets ``[..., M, C]`` to zero where the mask ``[..., M]`` is False."""
    return x if mask is None else jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))


def vary_alike(*arrays: jax.Array | None) -> list[jax.Array | None]:
    """Casts all arrays to the union of their varying manual axes (``jax.lax.pcast``).

    Inside ``jax.shard_map``, gradients of replicated arrays are then summed over the devices.
    """
    axes = [frozenset() if x is None else jax.typeof(x).manual_axis_type.varying for x in arrays]
    union = frozenset().union(*axes)
    return [
        x if x is None or own == union else jax.lax.pcast(x, tuple(union - own), to="varying")
        for x, own in zip(arrays, axes, strict=True)
    ]


def over_devices(x: jax.Array, axis_name: str | tuple[str, ...] | None) -> jax.Array:
    """The sum over the devices that the positions are split over."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def count_positions(x: jax.Array, mask: jax.Array | None, axis_name: str | None) -> jax.Array | int:
    """The number of positions of ``[..., M, C]``, on all devices, that are not padding.

    An int or ``[..., 1, 1]``. It is at least one, so that the mean is zero if all positions are
    padding.
    """
    if mask is None:
        return x.shape[-2] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    number = jnp.sum(mask, axis=-1, dtype=float32_or_more(x))[..., None, None]
    return jnp.maximum(over_devices(number, axis_name), 1)


def check_floating(**arrays: jax.Array) -> None:
    """Requires floating-point arrays.

    Raises:
      InputError: An array has another type. The message names it.
    """
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            advice = "convert it to a floating type, such as float32"
            if x.dtype == jnp.uint8:
                advice += ", and pixels with nonlocal_jax.data.normalize"
            raise InputError(f"{name} has dtype {x.dtype}; {advice}")


def check_scalar(**numbers: jax.typing.ArrayLike) -> None:
    """Requires numbers or scalar arrays.

    Raises:
      InputError: An argument has a shape. The message names it.
    """
    for name, number in numbers.items():
        if jnp.ndim(number) > 0:
            raise InputError(f"{name} has shape {jnp.shape(number)}; use a scalar")


def check_mask(mask: jax.Array | None, positions: tuple[int, ...], name: str = "mask") -> None:
    """Requires a boolean mask of shape ``positions``, or None.

    Raises:
      InputError: The type or the shape is wrong.
    """
    if mask is None:
        return
    if mask.dtype != bool:
        raise InputError(f"{name} has dtype {mask.dtype}; use bool, with False for padding")
    if mask.shape != positions:
        raise InputError(
            f"{name} has shape {mask.shape}, but needs one entry per position; use {positions}"
        )


def check_positions(theta: jax.Array, phi: jax.Array, g: jax.Array) -> None:
    """Requires queries ``[..., N, C]``, keys ``[..., M, C]`` and values ``[..., M, D]``.

    Without values, pass the keys as ``g``.

    Raises:
      InputError: A type is not floating, or the shapes do not match.
    """
    check_floating(theta=theta, phi=phi, g=g)
    shapes = f"theta has shape {theta.shape}, phi {phi.shape}, g {g.shape}"
    if min(theta.ndim, phi.ndim, g.ndim) < 2:
        raise InputError(f"{shapes}; use theta [..., N, C], phi [..., M, C], g [..., M, D]")
    if theta.shape[-1] != phi.shape[-1]:
        raise InputError(f"{shapes}; use the same number of channels C for theta and phi")
    if phi.shape[-2] != g.shape[-2]:
        raise InputError(f"{shapes}; use the same number of positions M for phi and g")
    if not theta.shape[:-2] == phi.shape[:-2] == g.shape[:-2]:
        raise InputError(f"{shapes}; use the same leading dimensions for theta, phi and g")
    if 0 in (theta.shape[-2], phi.shape[-2]):
        raise InputError(f"{shapes}; use at least one query and one key")
