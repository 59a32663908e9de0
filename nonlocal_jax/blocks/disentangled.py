"""The disentangled non-local block."""

import functools

import flax.linen as nn
import jax

from nonlocal_jax import ops
from nonlocal_jax.blocks._positions import relate
from nonlocal_jax.blocks.non_local import NonLocalBlock
from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import initializers

MODES = ("gaussian", "embedded_gaussian")


class DisentangledNonLocalBlock(NonLocalBlock):
    """The non-local block with whitened pairwise attention and unary attention.

    ::

        z_i = x_i + norm(W (y_i + u))
        y_i = sum_j softmax_j(theta'_i . phi'_j / (sqrt(C') temperature)) g_j
        u   = sum_j softmax_j(m_j) g_j

        theta'_i = theta_i - mean_j theta_j
        phi'_i   = phi_i - mean_j phi_j
        m_i      = conv_mask(x_i)

    y shows where a position looks, once the part that all positions share is removed; u is that
    shared part. conv_mask is a 1x1 convolution with bias from C to 1 channel. All other symbols,
    shapes and attributes are those of :class:`NonLocalBlock`; ``use_scale=False`` leaves out
    sqrt(C'). Only the softmax modes "gaussian" and "embedded_gaussian" have a disentangled version.
    The recorded ``query`` and ``key`` are whitened and give the pairwise term without u.

    Source: Yin et al., Disentangled Non-Local Neural Networks (arXiv:2006.06668), eq. 11. The
    convention is that of mmsegmentation's ``DisentangledNonLocal2d``: both terms share g and one
    output projection W. (The authors' code has no W, and a learned factor on the pairwise term.)

    Attributes:
      temperature: divides the whitened logits; 0.05 multiplies them by 20.
    """

    temperature: float = 0.05

    def _check(self) -> None:
        super()._check()
        if self.mode not in MODES:
            raise InputError(
                f"mode is {self.mode!r}; for a disentangled block use one of {', '.join(MODES)}"
            )
        if self.temperature <= 0:
            raise InputError(f"temperature is {self.temperature}; use a positive number")

    def _relate(
        self,
        theta: jax.Array,
        phi: jax.Array,
        g: jax.Array,
        keys: jax.Array,
        mask: jax.Array | None,
    ) -> jax.Array:
        conv_mask = nn.Dense(
            1,
            dtype=self.dtype,
            kernel_init=initializers.torch_default,
            bias_init=initializers.torch_default_bias(keys.shape[-1]),
            name="conv_mask",
        )
        m = self._pool_after(conv_mask(keys))[..., 0]
        scale = self._scale(theta) / self.temperature
        whiten = functools.partial(relate, ops.channel_whiten, axes=self.axes, mask=mask)
        self._record(scale, whiten(theta), whiten(phi))
        operation = functools.partial(
            ops.disentangled, scale=scale, implementation=self.implementation
        )
        return relate(operation, theta, phi, g, m, axes=self.axes, mask=mask, mask_queries=True)
