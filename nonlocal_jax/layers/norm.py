"""Batch normalization with PyTorch's numbers, and how a norm is injected into a block."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax.ops._numerics import at_least_float32, promoted_dtype

# Called as ``norm(name=..., dtype=..., scale_init=...)``: BatchNorm below, or a partial of
# nn.BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm.
NormFn = Callable[..., nn.Module]


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + epsilon) * scale + bias over all axes but the last.

    As ``torch.nn.BatchNorm``, and unlike ``flax.linen.BatchNorm`` in two places: the running
    variance is the unbiased one, n/(n-1) times the variance that normalizes, and the variance is
    computed in two passes. ``momentum`` is the share of the old statistics (PyTorch's is the share
    of the new). Statistics are at least float32. Under ``jit`` a batch sharded over devices is
    normalized as one batch (SyncBN).

    Attributes:
      momentum: running = momentum * running + (1 - momentum) * batch.
      epsilon: added to the variance.
      dtype: of the result; None promotes the input with the parameters.
      scale_init: zeros makes a residual branch start as the identity.
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
        """Normalizes ``[..., C]``; where ``mask``, of its shape, is False, nothing is counted."""
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
            n = jnp.maximum(n, 1)  # nothing but padding has mean and variance 0
            mean = jnp.sum(x, axes, where=mask) / n
            var = jnp.sum(jnp.square(x - expand(mean)), axes, where=mask) / n
            if not self.is_initializing():
                unbiased = var * (n / jnp.maximum(n - 1, 1))
                for running, new in ((running_mean, mean), (running_var, unbiased)):
                    update = self.momentum * running.value + (1 - self.momentum) * new
                    running.value = update.astype(running.value.dtype)
        factor = expand(jax.lax.rsqrt(var + self.epsilon) * scale)
        y = (x - expand(mean)) * factor + expand(bias)
        return y.astype(dtype)


def apply_norm(
    module: nn.Module, x: jax.Array, *, train: bool, mask: jax.Array | None = None
) -> jax.Array:
    """Applies a norm layer to ``[B, *S, C]``.

    Only those that keep running statistics are told about ``train``, and only those whose
    statistics are over positions about the ``mask``, ``[B, *S]``.
    """
    options = {}
    if hasattr(module, "use_running_average"):
        options["use_running_average"] = not train
    if mask is not None and (options or isinstance(module, nn.GroupNorm | nn.InstanceNorm)):
        options["mask"] = jnp.broadcast_to(mask[..., None], x.shape)  # GroupNorm asks for it
    with jax.numpy_dtype_promotion("standard"):  # Flax promotes the types of its statistics
        return module(x, **options)
