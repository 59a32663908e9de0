"""Counts the multiply-adds of a function."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count_multiply_adds(function: Callable[..., Any], *args: Any) -> int:
    """Returns the number of multiply-adds of the convolutions and matrix products of a function.

    A convolution with a kernel ``[*K, I, O]`` and an output ``[B, *S, O]`` has
    B * prod(S) * prod(K) * I * O multiply-adds. This includes products with padding, as in the
    tables of most papers. The compiler's own count leaves them out.

    ``jax.lax.scan`` counts all of its iterations, ``jax.lax.while_loop`` one. Of the branches of a
    condition, the one with most multiply-adds counts. Kernels (Pallas, cuDNN) are not counted: use
    blocks with ``implementation="dense"``.

    Args:
      function: The function, such as ``model.apply``.
      *args: Its arguments. ``jax.ShapeDtypeStruct`` is accepted for arrays.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(map(_count_equation, jaxpr.eqns))


def _count_equation(equation: core.JaxprEqn) -> int:
    params = equation.params
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        # The kernel's I axis is that of one group already.
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    counts = [_count(jaxpr) for jaxpr in core.jaxprs_in_params(params)]
    if equation.primitive.name == "cond":
        return max(counts)
    return sum(counts) * params.get("length", 1)
