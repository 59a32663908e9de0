"""Softmax attention on one device: the choice of the implementation, and its derivatives."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.tree_util import Partial

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops import _kernels as kernels
from nonlocal_jax.ops import softmax
from nonlocal_jax.ops._numerics import with_sizes_known

# "auto" uses "dense" for up to this many entries of all attention matrices together, per channel of
# the queries and at all. On a CPU, "chunked" is faster beyond. In float32, 2**22 take 16 MiB.
_DENSE_LIMIT_PER_CHANNEL = 2**15
_DENSE_LIMIT = 2**22

IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "dense": softmax.dense,
    "chunked": softmax.chunked,
    "ring": softmax.ring,
    "flash": kernels.flash,
    "cudnn": kernels.cudnn,
}

# The platform of each kernel, as ``jax.lax.platform_dependent`` and users call it.
_KERNELS = {"flash": ("tpu", "TPUs"), "cudnn": ("cuda", "NVIDIA GPUs")}


def best_attention(platform: str, theta: jax.Array, phi: jax.Array, g: jax.Array) -> str:
    """The implementation of softmax attention that "auto" chooses.

    This is the choice on one device, or after keys and values are gathered.

    It is the first row that applies:

    =========  =====================================================================================
    Choice     Condition
    =========  =====================================================================================
    "chunked"  A size is symbolic (``jax.export``).
    "dense"    The N x M matrices of all batch items have up to min(2**15 C, 2**22) entries.
    "chunked"  Inside a ``jax.shard_map`` with ``check_vma=True``. The kernels do not support it.
    "flash"    TPU; bfloat16 or float32; up to 1024 channels.
    "cudnn"    NVIDIA GPU, Ampere or newer; bfloat16; numbers of channels that are multiples of 8,
               up to 256 (before Hopper, up to 128).
    "chunked"  All other cases.
    =========  =====================================================================================

    Until this process has initialized an NVIDIA GPU, the choice assumes Hopper or newer.

    Args:
      platform: One of "cpu", "tpu" and "cuda".
      theta: Queries ``[..., N, C]``.
      phi: Keys ``[..., M, C]``.
      g: Values ``[..., M, D]``.

    Returns:
      A name in ``IMPLEMENTATIONS["softmax_attention"]``.
    """
    if not with_sizes_known(theta, phi, g):
        return "chunked"
    limit = min(_DENSE_LIMIT_PER_CHANNEL * theta.shape[-1], _DENSE_LIMIT)
    if math.prod(theta.shape[:-1]) * phi.shape[-2] <= limit:
        return "dense"
    if any(jax.typeof(x).manual_axis_type.varying for x in (theta, phi, g)):
        return "chunked"  # kernels do not declare over which mesh axes their outputs vary
    if platform == "tpu" and kernels.fits_flash(theta, phi, g):
        return "flash"
    in_bfloat16 = all(x.dtype == jnp.bfloat16 for x in (theta, phi, g))
    if platform == "cuda" and in_bfloat16 and kernels.fits_cudnn(theta.shape[-1], g.shape[-1]):
        return "cudnn"
    return "chunked"


def attend(theta, phi, g, mask, scale, precision, implementation) -> jax.Array:
    """Softmax attention on one device, by the implementation of this name or by "auto"."""

    def compute(name: str) -> Callable[..., jax.Array]:
        return functools.partial(IMPLEMENTATIONS[name], scale=scale, precision=precision)

    arguments = theta, phi, g, mask
    if implementation == "auto":
        names = {p: best_attention(p, theta, phi, g) for p in ("cpu", "tpu", "cuda")}
        default = names["cpu"]
        branches = {p: compute(name) for p, name in names.items() if name != default}
        otherwise = compute(default)
    elif implementation in _KERNELS:
        platform, devices = _KERNELS[implementation]
        branches = {platform: compute(implementation)}
        otherwise = functools.partial(_refuse, implementation, devices, compute("chunked"))
    else:
        branches, otherwise = {}, compute(implementation)
    if not branches:
        return otherwise(*arguments)

    def by_platform(*arguments):
        # The program may be compiled for another platform than the one that this code runs on.
        return jax.lax.platform_dependent(*arguments, **branches, default=otherwise)

    return _with_second_derivative(by_platform, compute("chunked"))(*arguments)


def _with_second_derivative(
    function: Callable[..., jax.Array], plain: Callable[..., jax.Array]
) -> Callable[..., jax.Array]:
    """Returns ``function`` with its own gradient, and with the second derivatives of ``plain``.

    JAX cannot differentiate the gradient of a kernel. It also differentiates the branches of
    ``jax.lax.platform_dependent`` for all platforms. So both calls that contain kernels have rules
    of their own: ``forward``, which also returns what the gradient needs, and ``backward``. A
    custom_vjp returns only arrays, so the pullback is split into its arrays and the rest.
    """

    @jax.custom_vjp
    def attention(theta, phi, g, mask):
        return function(theta, phi, g, mask)

    def attention_forward(*arguments):
        rest = None

        @jax.custom_vjp
        def forward(theta, phi, g, mask):
            nonlocal rest
            y, pullback = jax.vjp(lambda *arrays: function(*arrays, mask), theta, phi, g)
            leaves, tree = jax.tree.flatten(pullback)
            arrays = [x for x in leaves if isinstance(x, jax.Array)]
            rest = tree, [None if isinstance(x, jax.Array) else x for x in leaves]
            return y, arrays

        def forward_backward(arguments, cotangents):
            return *plain_gradients(cotangents[0], *arguments), None

        forward.defvjp(lambda *arguments: (forward(*arguments), arguments), forward_backward)
        y, arrays = forward(*arguments)
        return y, (Partial(functools.partial(_pull_back, rest), arrays), arguments)

    @jax.custom_vjp
    def backward(pullback, dy, theta, phi, g, mask):
        return pullback(dy)

    def attention_backward(residuals, dy):
        pullback, arguments = residuals
        return *backward(pullback, dy, *arguments), None

    def plain_gradients(dy, theta, phi, g, mask):
        return jax.vjp(lambda *arrays: plain(*arrays, mask), theta, phi, g)[1](dy)

    def backward_backward(arguments, cotangents):
        *arrays, mask = arguments
        _, pullback = jax.vjp(lambda *arrays: plain_gradients(*arrays, mask), *arrays)
        return None, *pullback(cotangents), None

    attention.defvjp(attention_forward, attention_backward)
    backward.defvjp(
        lambda pullback, *arguments: (backward(pullback, *arguments), arguments),
        backward_backward,
    )
    return attention


def _pull_back(rest, arrays, dy):
    """Calls a pullback of ``jax.vjp`` that was split into its arrays and the rest."""
    tree, others = rest
    remaining = iter(arrays)
    leaves = [next(remaining) if x is None else x for x in others]
    return jax.tree.unflatten(tree, leaves)(dy)


def _refuse(implementation, devices, plain, *arguments):
    """The branch of a kernel for all other platforms. It raises an error when it is compiled.

    ``plain`` gives its result the shape and the derivatives of the kernel.
    """
    message = (
        f"implementation is {implementation!r}, a kernel for {devices}, but the program is "
        "compiled for another platform; use implementation='auto'"
    )
    y = plain(*arguments)
    return y + _refusal.bind(dtype=y.dtype, message=message)


def _raise(context, *, dtype, message):
    raise InputError(message)


_refusal = Primitive("refusal")
_refusal.def_abstract_eval(lambda *, dtype, message: jax.core.ShapedArray((), dtype))
mlir.register_lowering(_refusal, _raise)
