"""Batch normalization that equals PyTorch's, and a function that applies any norm."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops._numerics import float32_or_more, over_devices, promoted_dtype

# A constructor, called as ``norm(name=..., dtype=...)``, and in blocks also with ``param_dtype``
# and ``scale_init``: ``BatchNorm``, ``nn.GroupNorm``, ``nn.LayerNorm`` or another norm of Flax, or
# a ``functools.partial`` or ``Constructor`` of one. A frozen batch norm is
# ``Constructor(BatchNorm, use_running_average=True)``.
NormFn = Callable[..., nn.Module]


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last, equal to ``torch.nn.BatchNorm``::

        y = (x - mean) / sqrt(var + epsilon) * scale + bias

    mean and var are the statistics of the batch, or the running statistics. scale and bias are
    parameters, with one entry per channel.

    It differs from ``flax.linen.BatchNorm`` in two points. The running variance is unbiased: n
    values have n / (n - 1) times the variance that normalizes. The variance is computed in two
    passes. Statistics are at least float32. Under ``jit``, a batch that is sharded over devices is
    normalized as one batch (SyncBN).

    Networks that were published without SyncBN normalize the examples of each device separately:
    those of Caffe2, for example, 8 clips per GPU. ``group_size=8`` does the same on any number of
    devices: examples 0 to 7 are normalized together, then 8 to 15, and so on. The running
    statistics are updated with the mean over the groups. In Caffe2 each GPU has its own, so this is
    the mean over the GPUs. Groups that do not span devices are normalized without communication.

    Attributes:
      momentum: Weight of the old statistics:
        running = momentum * running + (1 - momentum) * batch. In PyTorch, ``momentum`` is the
        weight of the new statistics.
      epsilon: Number that is added to the variance.
      dtype: Type of the result. None promotes the input with the parameters.
      param_dtype: Type of scale and bias. The running statistics are float32.
      scale_init: Initializer of the scale. With zeros, a residual block starts as the identity.
      use_running_average: Whether to normalize with the running statistics and not to change them.
        None leaves the choice to the call. True freezes the norm: its statistics never change, not
        even in training.
      axis_name: Axes of the user's own ``jax.shard_map``, or of ``jax.vmap`` with ``axis_name``,
        that the statistics are over. The parts of all devices have the same shape. ``init`` ignores
        it.
      group_size: Number of consecutive examples, along the first axis, that are normalized
        together. A smaller batch is one group. None: the whole batch.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    use_running_average: bool | None = None
    axis_name: str | tuple[str, ...] | None = None
    group_size: int | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes ``[..., C]``.

        The ``mask`` has the shape of x. Where it is False, x is not part of the statistics.

        With the statistics of the batch, their mean and biased variance over all groups are also
        stored in the collection "batch_moments" if it is mutable.

        Raises:
          InputError: The batch is not a multiple of ``group_size``, or ``axis_name`` is set too.
        """
        use_running_average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, channels, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        dtype = self.dtype or promoted_dtype(x, scale)

        wide, shape = float32_or_more(x, scale), x.shape
        grouped = not use_running_average and self._has_groups(x)
        if grouped:
            x, mask = jax.tree.map(
                lambda a: a.reshape(-1, self.group_size, *a.shape[1:]), (x, mask)
            )
        axes = tuple(range(1 if grouped else 0, x.ndim - 1))
        expand = functools.partial(jnp.expand_dims, axis=axes)
        ones = (1,) * (x.ndim - 1)
        scale, bias = (a.astype(wide).reshape(ones + channels) for a in (scale, bias))
        if use_running_average:
            mean, var = (a.value.astype(wide) for a in (running_mean, running_var))
            factor = expand(jax.lax.rsqrt(var + self.epsilon)) * scale
            y = (x.astype(wide) - expand(mean)) * factor
        else:
            axis_name = None if self.is_initializing() else self.axis_name
            if mask is None:
                # A product of floats, because 2**31 is too large for JAX's int32. float() would
                # refuse the symbolic sizes of jax.export.
                n = math.prod((x.shape[axis] for axis in axes), start=1.0)
                n *= 1 if axis_name is None else jax.lax.axis_size(axis_name)
            else:
                n = over_devices(jnp.sum(mask, axes, dtype=wide), axis_name)
            n = jnp.maximum(n, 1)  # where everything is padding, mean and variance are 0
            y, mean, var = _normalize(x, scale, mask, n, axes, axis_name, self.epsilon)
            if not self.is_initializing():
                unbiased = var * (n / jnp.maximum(n - 1, 1))
                for running, new in ((running_mean, mean), (running_var, unbiased)):
                    new = jnp.mean(new, axis=0) if grouped else new
                    update = self.momentum * running.value + (1 - self.momentum) * new
                    running.value = update.astype(running.value.dtype)
                self._store_moments(mean, var, grouped)
        y = (y + bias).reshape(shape).astype(dtype)
        return y if use_running_average or dtype == wide else _with_stored_gradient(y)

    def _has_groups(self, x: jax.Array) -> bool:
        """Returns whether the batch consists of more than one group."""
        if self.group_size is None or len(x) <= self.group_size:
            return False
        if self.axis_name is not None:
            raise InputError(
                f"the batch norm has group_size={self.group_size} and axis_name="
                f"{self.axis_name!r}; use one of them"
            )
        if len(x) % self.group_size:
            raise InputError(
                f"a batch of {len(x)} is not a multiple of {self.group_size}, the number of "
                "examples that are normalized together; use another batch size or group_size"
            )
        return True

    def _store_moments(self, mean: jax.Array, var: jax.Array, grouped: bool) -> None:
        if grouped:  # the variance over all groups
            mean, var = jnp.mean(mean, axis=0), jnp.mean(var, axis=0) + jnp.var(mean, axis=0)
        for name, value in (("mean", mean), ("var", var)):
            self.sow("batch_moments", name, value, reduce_fn=lambda _, new: new, init_fn=tuple)


@jax.custom_jvp
def _with_stored_gradient(y):
    """Returns y. Its gradient is stored in the type of y.

    The sums in the gradient of the norm are float32. Without the barrier, XLA stores float32 copies
    of bfloat16 gradients for them. On v5e, this saves 40 % of the traffic of the stem.
    """
    return y


@_with_stored_gradient.defjvp
def _with_stored_gradient_jvp(primals, tangents):
    return primals[0], jax.lax.optimization_barrier(tangents[0])


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5, 6))
def _normalize(x, scale, mask, n, axes, axis_name, epsilon):
    """Returns (x - mean) / sqrt(var + epsilon) * scale, and the mean and variance over ``axes``.

    The derivative has two differences from that of automatic differentiation. It uses that the
    deviations from the mean sum to zero: the gradient then has only sums of dy and of
    dy (x - mean), in one pass. And it computes the deviations again from x in its own type, which
    XLA would otherwise store in float32. On v5e, this saves half of the traffic of a bottleneck.
    """
    expand = functools.partial(jnp.expand_dims, axis=axes)
    mean, var = _moments(x.astype(scale.dtype), mask, n, axes, axis_name)
    y = (x.astype(scale.dtype) - expand(mean)) * (expand(jax.lax.rsqrt(var + epsilon)) * scale)
    return y, mean, var


def _moments(x, mask, n, axes, axis_name):
    total = functools.partial(over_devices, axis_name=axis_name)
    mean = total(jnp.sum(x, axes, where=mask)) / n
    deviations = x - jnp.expand_dims(mean, axes)
    return mean, total(jnp.sum(jnp.square(deviations), axes, where=mask)) / n


@_normalize.defjvp
def _normalize_jvp(axes, axis_name, epsilon, primals, tangents):
    x, scale, mask, n = primals
    dx, dscale, *_ = tangents
    dx = dx.astype(scale.dtype)
    expand = functools.partial(jnp.expand_dims, axis=axes)
    total = functools.partial(over_devices, axis_name=axis_name)
    y, mean, var = _normalize(x, scale, mask, n, axes, axis_name, epsilon)
    # Without the barrier, XLA finds that the forward pass computes the same.
    deviations = jax.lax.optimization_barrier(x).astype(scale.dtype) - expand(mean)
    dmean = total(jnp.sum(dx, axes, where=mask)) / n
    dvar = 2 * total(jnp.sum(deviations * dx, axes, where=mask)) / n
    factor = jax.lax.rsqrt(var + epsilon)
    change = dx - expand(dmean) - deviations * expand(jnp.square(factor) * dvar / 2)
    dy = change * (expand(factor) * scale) + deviations * expand(factor) * dscale
    return (y, mean, var), (dy, dmean, dvar)


def apply_norm(
    module: nn.Module, x: jax.Array, *, train: bool, mask: jax.Array | None = None
) -> jax.Array:
    """Applies any norm layer to ``[B, *S, C]``.

    Args:
      module: Norm layer.
      x: Feature map ``[B, *S, C]``.
      train: Whether to use the statistics of the batch. It is passed only to norms with running
        statistics that do not set ``use_running_average``. A frozen norm stays frozen.
      mask: Mask ``[B, *S]``, False where x is padding. It is passed only to norms whose statistics
        are over positions.

    Raises:
      InputError: A norm of Flax cannot compute its statistics over several devices with a mask.
    """
    options = {}
    running = getattr(module, "use_running_average", False)
    if running is None:
        running = options["use_running_average"] = not train
    if mask is not None and _is_over_positions(module):
        is_split = getattr(module, "axis_name", None) is not None
        if is_split and not running and not isinstance(module, BatchNorm):
            raise InputError(
                f"the norm is {type(module).__name__} of Flax with axis_name "
                f"{module.axis_name!r}, but it averages the means of the devices, which is wrong "
                "if they have different amounts of padding; use nonlocal_jax.blocks.BatchNorm"
            )
        # GroupNorm requires a mask with the shape of x.
        options["mask"] = jnp.broadcast_to(mask[..., None], x.shape)
    with jax.numpy_dtype_promotion("standard"):  # Flax promotes the types of its statistics
        return module(x, **options)


def check_norm(norm: NormFn | None) -> None:
    """Requires a constructor or None.

    Raises:
      InputError: It is something else, such as a module.
    """
    if norm is not None and (isinstance(norm, nn.Module) or not callable(norm)):
        raise InputError(
            f"norm is {norm!r}; use a constructor, such as nonlocal_jax.blocks.BatchNorm, a "
            "functools.partial of one, or None"
        )


def over_axis(norm: NormFn, axis_name: str | None) -> NormFn:
    """Sets ``axis_name`` of a norm with statistics over positions, unless it sets its own."""
    if axis_name is None:
        return norm
    module = norm(parent=None)
    is_unset = getattr(module, "axis_name", axis_name) is None
    if is_unset and _is_over_positions(module):
        return functools.partial(norm, axis_name=axis_name)
    return norm


def _is_over_positions(module: nn.Module) -> bool:
    return hasattr(module, "use_running_average") or isinstance(
        module, nn.GroupNorm | nn.InstanceNorm
    )
