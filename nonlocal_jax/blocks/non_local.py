"""The non-local block."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonlocal_jax import ops
from nonlocal_jax.blocks._positions import (
    Axes,
    max_pool_mask,
    max_pool_space,
    read_feature_map,
    relate,
)
from nonlocal_jax.errors import InputError
from nonlocal_jax.layers import initializers
from nonlocal_jax.layers.dense import Dense
from nonlocal_jax.layers.norm import BatchNorm, NormFn, apply_norm, check_norm, over_axis
from nonlocal_jax.ops._numerics import at_least_float32

SoftmaxMode = Literal["gaussian", "embedded_gaussian"]
Mode = Literal[SoftmaxMode, "dot_product", "concatenation"]
MODES = get_args(Mode)

SubSample = Literal[False, True, "after", "before"]
SUB_SAMPLES = get_args(SubSample)

# "auto" and the names in ``ops.IMPLEMENTATIONS``: first those of softmax attention, then those of
# all operations.
SoftmaxImplementation = Literal["auto", "dense", "chunked", "ring", "flash", "cudnn"]
Implementation = Literal[SoftmaxImplementation, "reassociated", "sorted"]


class NonLocalBlock(nn.Module):
    """The non-local block on feature maps ``[B, *S, C]``.

    ::

        z_i = x_i + norm(W y_i)
        y_i = (1 / Z_i) sum_j f(x_i, x_j) g_j

    ``mode`` chooses the pairwise function f and its normalizer Z_i::

        mode                 f(x_i, x_j)                        Z_i
        "gaussian"           exp(x_i . x_j)                     sum_j f(x_i, x_j)
        "embedded_gaussian"  exp(theta_i . phi_j / sqrt(C'))    sum_j f(x_i, x_j)
        "dot_product"        theta_i . phi_j                    M
        "concatenation"      ReLU(w . [theta_i, phi_j])         M

    The symbols are:

    - i and j are positions of a sequence ``[B, L, C]``, an image ``[B, H, W, C]`` or a clip
      ``[B, T, H, W, C]``. With ``sub_sample``, j is a position of the pooled feature map. M is the
      number of positions j that are not padding.
    - x_i is the input, with C channels. z_i is the output, with C channels.
    - y_i is the result of the pairwise operation, with C' = max(C // reduction, 1) channels.
    - theta_i, phi_j and g_j are query, key and value: 1x1 convolutions of x_i, x_j and x_j, from C
      to C' channels, with bias. "gaussian" has no theta or phi.
    - W is a 1x1 convolution from C' to C channels. It has a bias only if ``norm`` is None.
    - "." is the dot product, [a, b] is the concatenation of a and b, and w is a learned vector of
      2 C' numbers.

    The block starts as the identity: the scale of the norm is initialized to zero. If there is
    no norm, W is initialized to zero.

    Source: Wang et al., Non-local Neural Networks (arXiv:1711.07971), eq. 1 to 6. The convention is
    that of mmcv's ``NonLocalNd``.

    Several devices: A mesh (``jax.set_mesh``) may have Auto axes named "data" and "context". The
    batch is then split over "data", and the positions of an image are split over "context". With
    Explicit axes, the pairwise operation all-gathers the positions. Its output is sharded like x.

    ``jax.shard_map``: Inside the user's own ``shard_map``, a block relates the positions of its own
    part of x. If positions that attend to each other are split, into equal parts, set ``axis_name``
    to their mesh axis. Outputs and statistics then equal those of the whole x. For ``axes="space"``
    this is the axis that splits height or width, for "time" the axis that splits the frames. A norm
    whose statistics are over positions gets the same ``axis_name``, unless it has its own. If the
    batch is split too, set ``norm=functools.partial(BatchNorm, axis_name=("data", "context"))``.
    ``init`` ignores ``axis_name``.

    With ``check_vma=True``, JAX's default, gradients may be taken inside or outside the
    ``shard_map``. With ``check_vma=False``, take them outside: JAX sums them wrongly inside. The
    kernels "flash" and "cudnn" need ``check_vma=False``, and "auto" chooses them only there.

    Derivatives: "auto" has those of the implementation that it chooses::

        implementation        reverse  forward  reverse of reverse  forward of reverse
        dense, reassociated   yes      yes      yes                 yes
        chunked, ring, sorted yes      no       yes                 yes
        flash, cudnn          yes      no       yes                 no

    "reverse" is ``jax.grad`` or ``jax.vjp``, and "forward" is ``jax.jvp``. "auto" for many
    positions, where it may choose a kernel, has the derivatives of "flash" on every platform.

    ``jax.export``: Batch and sizes may be symbolic. ``sub_sample`` needs the constraint that height
    and width are at least 2: ``symbolic_shape("b, h, w, 64", constraints=["h >= 2", "w >= 2"])``.

    Visualization: With ``mutable=["intermediates"]``, the block sows ``query`` ``[B, *S, K]`` and
    ``key`` ``[B, *S', K]`` in float32 or float64. With a mask it also sows ``key_mask``
    ``[B, *S']``. As usual for ``sow``, each is a tuple with one array. With ``sub_sample``, S' has
    half the height and width of S (half the length for sequences). ``query`` and ``key`` are::

        mode                 query_i             key_j          K
        "gaussian"           x_i                 x_j            C
        "embedded_gaussian"  theta_i / sqrt(C')  phi_j          C'
        "dot_product"        theta_i             phi_j          C'
        "concatenation"      w_theta . theta_i   w_phi . phi_j  1

    w_theta and w_phi are the two halves of w. To get the attention matrix of a softmax mode with
    ``axes="spacetime"``, flatten the axes S and S'::

        _, state = block.apply(variables, x, mask=mask, mutable=["intermediates"])
        sown = {name: array for name, (array,) in state["intermediates"].items()}
        batch, channels = x.shape[0], sown["query"].shape[-1]
        query, key = (sown[name].reshape(batch, -1, channels) for name in ("query", "key"))
        key_mask = sown["key_mask"].reshape(batch, -1)  # only if the block got a mask
        attention = ops.attention_weights(query, key, mask=key_mask)

    Attributes:
      mode: The pairwise function (see above).
      reduction: Ratio C / C' of the channels.
      use_scale: Whether the logits of "embedded_gaussian" are divided by sqrt(C'). mmsegmentation
        and the authors' code divide; the paper and mmaction2 do not. No other mode is scaled.
      sub_sample: Max-pools keys and values by two along space. "after" (or True) pools the
        projections phi and g, as in the paper, mmcv and TSM. "before" pools x, as in the authors'
        code. False pools nothing. With ``axis_name``, each device pools its part, whose height and
        width must be even.
      axes: The positions that attend to each other: "spacetime" (all), "space" (those of a frame)
        or "time" (the same pixel in all frames).
      frames: If a number F, the positions of F consecutive frames attend to each other, and those
        of the other frames do not. A clip must have a multiple of F frames, or fewer than F. None:
        all frames. It requires ``axes="spacetime"``. The authors' networks for 128 frames use 4 in
        some of their blocks.
      norm: Constructor of the norm after W, or None.
      dtype: Type of the computation. None promotes the input with the parameters.
      param_dtype: Type of the parameters.
      precision: Precision of the products, as in ``nn.Dense``. The logits of the softmax modes are
        computed in at least float32.
      kernel_init: Initializer of the kernels of theta, phi and g.
      axis_name: Axis of the user's own ``jax.shard_map`` that positions are split over (see above).
      implementation: Implementation of the pairwise operation. The functions of
        ``nonlocal_jax.ops`` list the choices.
    """

    mode: Mode = "embedded_gaussian"
    reduction: int = 2
    use_scale: bool = True
    sub_sample: SubSample = False
    axes: Axes = "spacetime"
    frames: int | None = None
    # A default_factory, as a class attribute would hide the submodule "norm" from ``nnx.bridge``.
    norm: NormFn | None = dataclasses.field(default_factory=lambda: BatchNorm)
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    precision: jax.lax.PrecisionLike = None
    kernel_init: nn.initializers.Initializer = initializers.small_normal
    axis_name: str | None = None
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        """Applies the block.

        Args:
          x: Feature map ``[B, *S, C]``.
          train: Whether the norm uses the statistics of the batch instead of the running ones.
          mask: Mask ``[B, *S]``, False where x is padding. Padding is not attended to and not
            counted in the statistics. The output at padding is undefined.

        Returns:
          ``[B, *S, C]`` in the type of ``x``.

        Raises:
          InputError: A type, a shape or an attribute is wrong.
        """
        self._check(x)
        queries, mask = read_feature_map(x, self.axes, self.frames, mask, train)
        keys = max_pool_space(queries) if self.sub_sample == "before" else queries
        key_mask = mask
        if mask is not None:
            key_mask = max_pool_mask(mask) if self.sub_sample else mask
            self.sow("intermediates", "key_mask", key_mask)
        theta, phi, g = queries, keys, self._embed("g", keys)
        if self.mode != "gaussian":
            theta, phi = self._embed("theta", queries), self._embed("phi", keys)

        phi, g = self._pool_after(phi), self._pool_after(g)
        y = self._relate(theta, phi, g, keys, mask, key_mask)  # eq. 1
        y = self._project(y, x.shape[-1], train, mask)
        return x + y.astype(x.dtype)  # eq. 6

    def _check(self, x: jax.Array) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode is {self.mode!r}; use one of {', '.join(MODES)}")
        if not isinstance(self.reduction, int) or self.reduction < 1:
            raise InputError(f"reduction is {self.reduction}; use an integer of 1 or more")
        check_norm(self.norm)
        if self.sub_sample not in SUB_SAMPLES:
            choices = ", ".join(map(repr, SUB_SAMPLES))
            raise InputError(f"sub_sample is {self.sub_sample!r}; use one of {choices}")
        if self.sub_sample and self.axes == "time":
            raise InputError(
                f"sub_sample is {self.sub_sample!r}, but axes is 'time', and keys are pooled only "
                "along space; use sub_sample=False"
            )
        space = x.shape[2 if x.ndim == 5 else 1 : -1]
        if self.sub_sample and any(n in (0, 1) for n in space):
            raise InputError(
                f"x has shape {x.shape}, and sub_sample is {self.sub_sample!r}, but pooling by two "
                "leaves no key; use a larger feature map or sub_sample=False"
            )
        if self.sub_sample and self.axis_name is not None and any(n % 2 for n in space):
            raise InputError(
                f"x has shape {x.shape}, axis_name is {self.axis_name!r}, and sub_sample is "
                f"{self.sub_sample!r}, but the part of each device is pooled by two; use even "
                "heights and widths"
            )

    def _dense(self, features: int, layer: Callable[..., nn.Dense] = Dense, **options: Any):
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return layer(features, **types, precision=self.precision, **options)

    def _embed(self, name: str, x: jax.Array, layer: Callable[..., nn.Dense] = Dense) -> jax.Array:
        """Computes the projection theta, phi or g."""
        width = max(x.shape[-1] // self.reduction, 1)
        return self._dense(width, layer, kernel_init=self.kernel_init, name=name)(x)

    def _pool_after(self, projected: jax.Array) -> jax.Array:
        """Pools a projection of the keys, if ``sub_sample`` pools after the projection."""
        return max_pool_space(projected) if self.sub_sample in (True, "after") else projected

    def _relate(
        self,
        theta: jax.Array,
        phi: jax.Array,
        g: jax.Array,
        keys: jax.Array,
        mask: jax.Array | None,
        key_mask: jax.Array | None,
    ) -> jax.Array:
        """Computes y on feature maps. ``phi`` and ``g`` are projections of ``keys``."""
        if self.mode == "dot_product":
            operation = ops.dot_product
            self._record(theta, phi)
        elif self.mode == "concatenation":
            shape = (2 * theta.shape[-1], 1)
            w = self.param("concat_project", initializers.kaiming_fan_out, shape, self.param_dtype)
            w_theta, w_phi = jnp.split(w[:, 0].astype(theta.dtype), 2)
            project = functools.partial(jnp.matmul, precision=self.precision)
            operation, theta, phi = ops.concatenation, project(theta, w_theta), project(phi, w_phi)
            self._record(theta[..., None], phi[..., None])
        else:
            scale = self._scale(theta)
            self._record(scale * at_least_float32(theta), phi)
            operation = functools.partial(ops.softmax_attention, scale=scale)
        return self._apply(operation, theta, phi, g, mask=key_mask)

    def _apply(
        self, operation: Callable[..., jax.Array], *maps: jax.Array, **masks: jax.Array | None
    ) -> jax.Array:
        """Applies an operation of ``nonlocal_jax.ops`` to feature maps."""
        operation = functools.partial(
            operation, precision=self.precision, implementation=self.implementation
        )
        relation = {"axes": self.axes, "frames": self.frames, "axis_name": self._axis()}
        return relate(operation, *maps, **relation, **masks)

    def _axis(self) -> str | None:
        """Returns ``axis_name``, but None in ``init``, where the axis need not exist."""
        return None if self.is_initializing() else self.axis_name

    def _project(
        self, y: jax.Array, channels: int, train: bool, mask: jax.Array | None
    ) -> jax.Array:
        """Computes norm(W y)."""
        zeros = nn.initializers.zeros
        w_init = zeros if self.norm is None else initializers.kaiming_fan_out
        use_bias = self.norm is None
        y = self._dense(channels, use_bias=use_bias, kernel_init=w_init, name="conv_out")(y)
        if self.norm is None:
            return y
        norm = over_axis(self.norm, self._axis())
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return apply_norm(norm(**types, scale_init=zeros, name="norm"), y, train=train, mask=mask)

    def _scale(self, theta: jax.Array) -> float:
        return 1 / self._divisor(theta)

    def _divisor(self, theta: jax.Array) -> float:
        scaled = self.use_scale and self.mode == "embedded_gaussian"
        return theta.shape[-1] ** 0.5 if scaled else 1.0

    def _record(self, query: jax.Array, key: jax.Array) -> None:
        """Sows the arrays that determine the pairwise function."""
        self.sow("intermediates", "query", at_least_float32(query))
        self.sow("intermediates", "key", at_least_float32(key))
