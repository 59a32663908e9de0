"""The non-local block and its disentangled form."""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax import ops
from nonlocal_jax.blocks._mesh import block_input, over_mesh, split_like
from nonlocal_jax.blocks._positions import (
    check_feature_map,
    from_positions,
    mask_positions,
    max_pool_mask,
    max_pool_space,
    to_positions,
)
from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import initializers
from nonlocal_jax.layers.norm import BatchNorm, NormFn, apply_norm
from nonlocal_jax.ops._numerics import at_least_float32

MODES = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
SUB_SAMPLES = (False, True, "after", "before")

# Of the keys, "mask", and of the queries, "query_mask", as flat positions.
Masks = dict[str, jax.Array | None]


class NonLocalBlock(nn.Module):
    """z = x + norm(W y), y_i = (1/C(x)) sum_j f(x_i, x_j) g(x_j), on ``[B, *S, C]``.

    NL paper (arXiv:1711.07971) eq. 1 and 6, in the convention of mmcv's ``NonLocalNd``: theta, phi
    and g are 1x1 convolutions with bias to C' = C // reduction channels, W has no bias in front of
    a norm, and nothing follows the sum. The block is the identity at the start: the norm's scale,
    or W where there is no norm, begins at zero.

    Under a mesh (``jax.set_mesh``) with Auto axes "data" and "context", the batch is split over the
    one and the positions of an image over the other, see ``blocks.mesh``.

    With ``mutable=["intermediates"]`` the softmax modes give ``query`` and ``key`` as they enter
    the softmax, each in a tuple of one. Of these arrays
    ``ops.attention_weights(query[..., i, :][..., None, :], key)`` is where i looks.

    Attributes:
      mode: "gaussian" exp(x_i . x_j) (eq. 2), "embedded_gaussian" exp(theta_i . phi_j) (eq. 3),
        "dot_product" theta_i . phi_j (eq. 4), "concatenation" ReLU(w . [theta_i, phi_j]) (eq. 5).
      reduction: C / C'.
      use_scale: divide the logits of "embedded_gaussian" by sqrt(C'). mmsegmentation and the
        authors' code do, the paper and mmaction2 do not. No other mode is ever scaled.
      sub_sample: max-pool keys and values by two along space. "after" (or True) pools the
        projections phi and g: the paper, mmcv and TSM. "before" pools x: the authors' code.
      axes: "spacetime", "space" (within each frame) or "time" (across frames).
      norm: constructor of the norm behind W, or None.
      dtype: of the computation; None promotes the input with the float32 parameters.
      implementation: of the pairwise operation, see the functions of ``ops``.
    """

    mode: str = "embedded_gaussian"
    reduction: int = 2
    use_scale: bool = True
    sub_sample: bool | Literal["before", "after"] = False
    axes: str = "spacetime"
    norm: NormFn | None = BatchNorm
    dtype: jnp.dtype | None = None
    implementation: str = "auto"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps ``[B, *S, C]`` to the same shape; ``train`` switches the norm's statistics.

        ``mask``, ``[B, *S]``, is False where x is padding: no position looks there, it is no part
        of the statistics, and what comes out there means nothing.

        Raises:
          InputError: a shape or an attribute does not fit.
        """
        self._check(x, mask)
        shortcut = x
        x, mask = block_input(x, mask)
        width = max(x.shape[-1] // self.reduction, 1)
        conv = functools.partial(
            nn.Dense, width, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01)
        )
        keys = max_pool_space(x) if self.sub_sample == "before" else x
        theta, phi, g = x, keys, conv(name="g")(keys)
        if self.mode != "gaussian":
            theta, phi = conv(name="theta")(x), conv(name="phi")(keys)
        theta = to_positions(theta, self.axes)
        phi, g = self._key_positions(phi), self._key_positions(g)
        masks = {
            "mask": mask_positions(max_pool_mask(mask) if self.sub_sample else mask, self.axes),
            "query_mask": mask_positions(mask, self.axes),
        }
        y = from_positions(self._relate(theta, phi, g, keys, masks), x.shape[1:-1], self.axes)

        w_init = nn.initializers.zeros if self.norm is None else initializers.kaiming_fan_out
        y = nn.Dense(
            x.shape[-1],
            use_bias=self.norm is None,
            dtype=self.dtype,
            kernel_init=w_init,
            name="conv_out",
        )(y)
        if self.norm is not None:
            norm = self.norm(name="norm", dtype=self.dtype, scale_init=nn.initializers.zeros)
            y = apply_norm(norm, y, train=train, mask=mask)
        return shortcut + split_like(y.astype(x.dtype), shortcut)

    def _check(self, x: jax.Array, mask: jax.Array | None) -> None:
        check_feature_map(x, self.axes, mask)
        if self.mode not in MODES:
            raise InputError(f"mode must be one of {', '.join(MODES)}; got {self.mode!r}")
        if self.reduction < 1:
            raise InputError(f"reduction must be at least 1; got {self.reduction}")
        if self.sub_sample not in SUB_SAMPLES:
            raise InputError(f"sub_sample must be one of {SUB_SAMPLES}; got {self.sub_sample!r}")
        if self.sub_sample and self.axes == "time":
            raise InputError('sub_sample pools space; axes="time" does not relate space')

    def _key_positions(self, projected: jax.Array) -> jax.Array:
        """A projection of the keys as flat positions, pooled where pooling comes after it."""
        if self.sub_sample in (True, "after"):
            projected = max_pool_space(projected)
        return to_positions(projected, self.axes)

    def _relate(
        self, theta: jax.Array, phi: jax.Array, g: jax.Array, keys: jax.Array, masks: Masks
    ) -> jax.Array:
        """The pairwise operation of ``mode`` on flat positions; ``keys`` is the map they are of."""
        options = {"implementation": self.implementation}
        mask = masks["mask"]
        if self.mode == "dot_product":
            return over_mesh(
                functools.partial(ops.dot_product, **options), theta, phi, g, mask=mask
            )
        if self.mode == "concatenation":
            shape = (2 * theta.shape[-1], 1)
            w = self.param("concat_project", initializers.kaiming_fan_out, shape, jnp.float32)
            w_theta, w_phi = jnp.split(w[:, 0].astype(self.dtype or w.dtype), 2)
            operation = functools.partial(ops.concatenation, **options)
            return over_mesh(operation, theta @ w_theta, phi @ w_phi, g, mask=mask)
        scale = self._scale(theta.shape[-1])
        self._sow_attention(theta, phi, scale)
        operation = functools.partial(ops.softmax_attention, scale=scale, **options)
        return over_mesh(operation, theta, phi, g, mask=mask)

    def _scale(self, width: int) -> float:
        scaled = self.use_scale and self.mode == "embedded_gaussian"
        return width**-0.5 if scaled else 1.0

    def _sow_attention(self, theta: jax.Array, phi: jax.Array, scale: float) -> None:
        self.sow("intermediates", "query", scale * at_least_float32(theta))
        self.sow("intermediates", "key", at_least_float32(phi))


class DisentangledNonLocalBlock(NonLocalBlock):
    """The non-local block with whitened pairwise and unary attention, on ``[B, *S, C]``.

      z = x + norm(W (y + u))
      y_i = sum_j softmax_j(theta'_i . phi'_j / (sqrt(C') temperature)) g_j
      u   = sum_j softmax_j(m_j) g_j
      theta' = theta - mean theta,  phi' = phi - mean phi,  m = conv_mask(x)

    DNL paper (arXiv:2006.06668) eq. 11, in the convention of mmsegmentation's
    ``DisentangledNonLocal2d``: both terms share g and the one output projection W. (The authors'
    repository has no W and a learned factor on the pairwise term instead.) Only the softmax modes
    "gaussian" and "embedded_gaussian" have this form.

    Attributes:
      temperature: divides the whitened logits; 0.05 multiplies them by 20.
    """

    temperature: float = 0.05

    def _check(self, x: jax.Array, mask: jax.Array | None) -> None:
        super()._check(x, mask)
        if self.mode not in ("gaussian", "embedded_gaussian"):
            raise InputError(
                f"a disentangled block has mode gaussian or embedded_gaussian; got {self.mode!r}"
            )
        if self.temperature <= 0:
            raise InputError(f"temperature must be positive; got {self.temperature}")

    def _relate(
        self, theta: jax.Array, phi: jax.Array, g: jax.Array, keys: jax.Array, masks: Masks
    ) -> jax.Array:
        conv_mask = nn.Dense(
            1,
            dtype=self.dtype,
            kernel_init=initializers.torch_default,
            bias_init=initializers.torch_default_bias(keys.shape[-1]),
            name="conv_mask",
        )(keys)
        unary = self._key_positions(conv_mask)[..., 0]
        scale = self._scale(theta.shape[-1]) / self.temperature
        self._sow_attention(
            ops.channel_whiten(theta, mask=masks["query_mask"]),
            ops.channel_whiten(phi, mask=masks["mask"]),
            scale,
        )
        operation = functools.partial(
            ops.disentangled, scale=scale, implementation=self.implementation
        )
        return over_mesh(operation, theta, phi, g, unary, **masks)
