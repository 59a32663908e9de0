"""Counts the multiply-adds of a function."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def count_multiply_adds(function: Callable[..., Any], *args: Any) -> int:
    """Returns the number of multiply-adds of the convolutions and matrix products of a function.

    A convolution with a kernel ``[*K, I, O]`` and an output ``[B, *S, O]`` has
    B * prod(S) * prod(K) * I * O multiply-adds. This includes products with padding, as in the
    tables of most papers. The compiler's own count leaves them out. The gradient of a convolution
    with respect to its input, or to its kernel, has as many.

    ``jax.lax.scan`` counts all of its iterations, and a Pallas kernel its body at every point of
    its grid. ``jax.lax.while_loop`` counts one iteration, because their number is not known: a
    ``fori_loop`` with constant bounds is a scan. A ``jax.shard_map`` counts on all of its devices.
    Of the branches of a condition, the one with most multiply-adds counts. cuDNN's attention is not
    counted: use blocks with ``implementation="dense"``.

    Args:
      function: The function, such as ``model.apply``.
      *args: Its arguments. ``jax.ShapeDtypeStruct`` is accepted for arrays.
    """
    return count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def count_jaxpr(jaxpr: core.Jaxpr, platform: str | None = None) -> int:
    """Returns the number of multiply-adds of a traced function, see ``count_multiply_adds``.

    Args:
      jaxpr: The program, such as ``jax.jit(function).trace(*args).jaxpr.jaxpr``.
      platform: Platform that the program is compiled for, such as "tpu". It chooses the branch of
        ``jax.lax.platform_dependent``. None: the branch with most multiply-adds.
    """
    return sum(_count_equation(equation, platform) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn, platform: str | None) -> int:
    params = equation.params
    match equation.primitive.name:
        case "conv_general_dilated":
            return _count_convolution(equation)
        case "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            return equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
        case "cond":
            return max(count_jaxpr(branch, platform) for branch in _branches(params, platform))
    body = sum(count_jaxpr(jaxpr, platform) for jaxpr in core.jaxprs_in_params(params))
    return body * _repetitions(equation)


def _count_convolution(equation: core.JaxprEqn) -> int:
    params = equation.params
    inputs, kernel = (v.aval.shape for v in equation.invars)
    output = equation.outvars[0].aval.shape
    numbers = params["dimension_numbers"]
    # The kernel's I axis is that of one group already.
    products = math.prod(kernel) * output[numbers.out_spec[0]]
    axes = zip(numbers.lhs_spec[2:], numbers.out_spec[2:], params["lhs_dilation"], strict=True)
    for i, o, dilation in axes:
        # Between the pixels of a dilated input are zeros. This is the gradient of a stride: each
        # pixel meets each element of the kernel once.
        products *= inputs[i] if dilation > 1 else output[o]
    return products


def _branches(params: dict[str, Any], platform: str | None) -> Iterator[core.Jaxpr]:
    """The branches that may run on ``platform``."""
    of_platforms = params.get("branches_platforms")
    for i, branch in enumerate(params["branches"]):
        if platform is None or of_platforms is None:
            yield branch.jaxpr
        elif of_platforms[i] is None or platform in of_platforms[i]:
            yield branch.jaxpr
            return  # the first that fits is compiled


def _repetitions(equation: core.JaxprEqn) -> int:
    """How often the inner program of an equation runs."""
    params = equation.params
    match equation.primitive.name:
        case "scan":
            return params["length"]
        case "pallas_call":
            return math.prod(params["grid_mapping"].grid)
        case "shard_map":
            return math.prod(params["mesh"].shape[axis] for axis in params["manual_axes"])
    return 1
