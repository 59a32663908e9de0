"""The disentangled non-local block."""

import functools
import math
from typing import Literal, get_args

import flax.linen as nn
import jax
import numpy as np

from nonlocal_jax import ops
from nonlocal_jax.blocks._positions import relate
from nonlocal_jax.blocks.non_local import NonLocalBlock, SoftmaxImplementation, SoftmaxMode
from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import initializers
from nonlocal_jax.layers.dense import Float32Dense
from nonlocal_jax.ops._numerics import float32_or_more

MODES = get_args(SoftmaxMode)

Output = Literal["projection", "factor"]
OUTPUTS = get_args(Output)


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
    phi_j. The sown ``query`` and ``key`` are theta'_i / (sqrt(C') temperature) and phi'_j. They
    give the attention matrix A of the pairwise term.

    With ``dtype`` in half precision, theta and phi are whitened in float32 and then rounded once.

    Source: Yin et al., Disentangled Non-Local Neural Networks (arXiv:2006.06668), eq. 11. The
    convention is that of mmsegmentation's ``DisentangledNonLocal2d``: both terms share g and one
    output projection W. With ``output="factor"``, the block is that of the authors' code
    (github.com/yinmh17/DNL-Semantic-Segmentation, ``model/seg/ops/nonlocal_block.py``)::

        z_i = x_i + gamma y_i + u

    gamma is one learned number, initialized to zero. It multiplies only the pairwise term. g has C
    channels and no bias. There is no W and no norm. Unlike in ``output="projection"``, the block
    does not start as the identity, because u is not zero.

    Attributes:
      temperature: Divisor of the whitened logits, a positive number, or a scalar array such as a
        learned parameter. 0.05 multiplies the logits by 20. If it is a number, it and sqrt(C') are
        rounded to float32, as in mmsegmentation. The sign of an array is not checked.
      output: "projection" (W and norm) or "factor" (gamma). "factor" ignores ``norm``.
    """

    mode: SoftmaxMode = "embedded_gaussian"
    implementation: SoftmaxImplementation = "auto"
    temperature: float | jax.Array = 0.05
    output: Output = "projection"

    def _check(self, x: jax.Array) -> None:
        super()._check(x)
        if self.mode not in MODES:
            raise InputError(
                f"mode is {self.mode!r}; for a disentangled block, use one of {', '.join(MODES)}"
            )
        if self.output not in OUTPUTS:
            raise InputError(f"output is {self.output!r}; use one of {', '.join(OUTPUTS)}")
        if np.ndim(self.temperature) > 0:
            shape = np.shape(self.temperature)
            raise InputError(f"temperature has shape {shape}; use a number or a scalar array")
        if not isinstance(self.temperature, jax.Array) and not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; use a positive number")

    def _embed(self, name: str, x: jax.Array) -> jax.Array:
        if name == "g":
            if self.output == "projection":
                return super()._embed(name, x)
            options = {"use_bias": False, "kernel_init": self.kernel_init, "name": name}
            return self._dense(x.shape[-1], **options)(x)
        # Whitening cancels digits, so theta and phi are rounded only after it.
        return super()._embed(name, x, layer=Float32Dense)

    def _relate(
        self,
        theta: jax.Array,
        phi: jax.Array,
        g: jax.Array,
        keys: jax.Array,
        mask: jax.Array | None,
        key_mask: jax.Array | None,
    ) -> jax.Array:
        conv_mask = self._dense(
            1,
            kernel_init=initializers.torch_default,
            bias_init=initializers.torch_default_bias(keys.shape[-1]),
            name="conv_mask",
        )
        m = self._pool_after(conv_mask(keys))[..., 0]
        scale = self._scale(theta)
        relation = {"axes": self.axes, "frames": self.frames, "axis_name": self._axis()}
        whiten = functools.partial(relate, ops.channel_whiten, **relation)
        self._record(scale * whiten(theta, mask=mask), whiten(phi, mask=key_mask))
        operation = functools.partial(ops.disentangled, scale=scale)
        if self.output == "factor":
            gamma = self.param("gamma", nn.initializers.zeros, (), self.param_dtype)
            operation = functools.partial(operation, factor=gamma)
        return self._apply(operation, theta, phi, g, m, mask=key_mask, query_mask=mask)

    def _project(
        self, y: jax.Array, channels: int, train: bool, mask: jax.Array | None
    ) -> jax.Array:
        return super()._project(y, channels, train, mask) if self.output == "projection" else y

    def _scale(self, theta: jax.Array) -> float | jax.Array:
        if isinstance(self.temperature, jax.Array):
            return super()._scale(theta) / self.temperature.astype(float32_or_more(theta))
        divisors = self._divisor(theta), self.temperature
        return 1 / math.prod(float(np.float32(divisor)) for divisor in divisors)
