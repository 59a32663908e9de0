"""Batch normalization that equals PyTorch's, and a function that applies any norm."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax.ops._numerics import at_least_float32, promoted_dtype

# A constructor, called as ``norm(name=..., dtype=...)`` or with ``scale_init`` too: ``BatchNorm``,
# ``nn.GroupNorm``, ``nn.LayerNorm`` or another norm of Flax, or a ``functools.partial`` of one. A
# frozen batch norm is ``functools.partial(BatchNorm, use_running_average=True)``.
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

    Attributes:
      momentum: Weight of the old statistics:
        running = momentum * running + (1 - momentum) * batch. In PyTorch, ``momentum`` is the
        weight of the new statistics.
      epsilon: Number that is added to the variance.
      dtype: Type of the result. None promotes the input with the parameters.
      scale_init: Initializer of the scale. With zeros, a residual block starts as the identity.
      use_running_average: Whether to normalize with the running statistics and not to change them.
        None leaves the choice to the call. True freezes the norm: its statistics never change, not
        even in training.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    use_running_average: bool | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes ``[..., C]``.

        The ``mask`` has the shape of x. Where it is False, x is not part of the statistics.
        """
        use_running_average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        dtype = self.dtype or promoted_dtype(x, scale)

        x = at_least_float32(x)
        axes = tuple(range(x.ndim - 1))
        expand = functools.partial(jnp.expand_dims, axis=axes)
        if use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            n = x.size // x.shape[-1] if mask is None else jnp.sum(mask, axes, dtype=x.dtype)
            n = jnp.maximum(n, 1)  # where everything is padding, mean and variance are 0
            mean = jnp.sum(x, axes, where=mask) / n
            var = jnp.sum(jnp.square(x - expand(mean)), axes, where=mask) / n
            if not self.is_initializing():
                unbiased = var * (n / jnp.maximum(n - 1, 1))
                for running, new in ((running_mean, mean), (running_var, unbiased)):
                    update = self.momentum * running.value + (1 - self.momentum) * new
                    running.value = update.astype(running.value.dtype)
        factor = jax.lax.rsqrt(var + self.epsilon) * scale
        y = (x - expand(mean)) * expand(factor) + expand(bias)
        return y.astype(dtype)


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
    """
    options = {}
    has_running_average = hasattr(module, "use_running_average")
    if has_running_average and module.use_running_average is None:
        options["use_running_average"] = not train
    over_positions = has_running_average or isinstance(module, nn.GroupNorm | nn.InstanceNorm)
    if mask is not None and over_positions:
        # GroupNorm requires a mask with the shape of x.
        options["mask"] = jnp.broadcast_to(mask[..., None], x.shape)
    with jax.numpy_dtype_promotion("standard"):  # Flax promotes the types of its statistics
        return module(x, **options)
