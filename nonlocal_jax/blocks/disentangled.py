"""The disentangled non-local block."""

import functools
from typing import get_args

import flax.linen as nn
import jax

from nonlocal_jax import ops
from nonlocal_jax.blocks._positions import relate
from nonlocal_jax.blocks.non_local import NonLocalBlock, SoftmaxImplementation, SoftmaxMode
from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import initializers

MODES = get_args(SoftmaxMode)


class DisentangledNonLocalBlock(NonLocalBlock):
    """The non-local block with whitened pairwise attention and unary attention.

    ::

        z_i = x_i + norm(W (y_i + u))
        y_i = sum_j A_ij g_j
        u   = sum_j b_j g_j

        A_ij     = softmax over j of theta'_i . phi'_j / (sqrt(C') temperature)
        b_j      = softmax over j of m_j
        theta'_i = theta_i - (mean over i of theta_i)
        phi'_j   = phi_j - (mean over j of phi_j)
        m_j      = conv_mask(x_j)

    y_i is the attention of position i, computed from whitened queries and keys: their mean is
    subtracted. This is the pairwise term. u is a second attention, with the learned scores m_j. It
    is the same for all positions i. This is the unary term. conv_mask is a 1x1 convolution with
    bias from C to 1 channel. All other symbols, shapes and attributes are those of
    :class:`NonLocalBlock`.

    Only the modes "gaussian" and "embedded_gaussian" are supported. Only "embedded_gaussian" with
    ``use_scale=True`` divides by sqrt(C'). "gaussian" uses x_i and x_j in place of theta_i and
    phi_j. The sown ``query`` and ``key`` are whitened. They give the attention matrix A of the
    pairwise term.

    Source: Yin et al., Disentangled Non-Local Neural Networks (arXiv:2006.06668), eq. 11. The
    convention is that of mmsegmentation's ``DisentangledNonLocal2d``: both terms share g and one
    output projection W. The authors' code has no W. It multiplies the pairwise term by a learned
    factor.

    Attributes:
      temperature: Divisor of the whitened logits. 0.05 multiplies them by 20.
    """

    mode: SoftmaxMode = "embedded_gaussian"
    implementation: SoftmaxImplementation = "auto"
    temperature: float = 0.05

    def _check(self) -> None:
        super()._check()
        if self.mode not in MODES:
            raise InputError(
                f"mode is {self.mode!r}; for a disentangled block, use one of {', '.join(MODES)}"
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
        key_mask: jax.Array | None,
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
        whiten = functools.partial(relate, ops.channel_whiten, axes=self.axes)
        self._record(scale * whiten(theta, mask=mask), whiten(phi, mask=key_mask))
        operation = functools.partial(
            ops.disentangled, scale=scale, implementation=self.implementation
        )
        masks = {"mask": key_mask, "query_mask": mask}
        return relate(operation, theta, phi, g, m, axes=self.axes, **masks)
