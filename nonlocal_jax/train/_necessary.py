"""The memory traffic that a step cannot do without, counted from the traced program."""

import collections
import itertools
import math

import jax
from jax.extend import core

from nonlocal_jax.models.count import equations
from nonlocal_jax.traffic import KINDS, path_kind

# A batch norm reads its input once for the variance (the convolution before it can sum the mean).
# Its gradient reads the input and dy for two sums, and the input again for the gradient of each of
# the two operands of the convolution. In the traced program, the forward pass has two sums.
_NORM_READS = 5
_NORM_SUMS = 2


def necessary_traffic(
    jaxpr: core.Jaxpr, chips: int, *, itemsize: int, state_bytes: int = 0, gradient_bytes: int = 0
) -> dict[str, int]:
    """Returns the bytes per chip that a step has to move, by the kinds of ``traffic.KINDS``.

    Each convolution, product, pool and kernel reads its operands and writes its result once.
    Everything else is fused with them, with these exceptions: the reads of a batch norm, and of the
    second operand of a sum of feature maps. The optimizer reads and writes the state and reads the
    gradient. Nothing stays in vector memory (VMEM) between operations, so a program that keeps
    small arrays there can move less.

    Args:
      jaxpr: The step, over all chips.
      chips: Number of chips that the batch is split over.
      itemsize: Bytes per number of an activation.
      state_bytes: Bytes per chip of the parameters, their moving average and the optimizer state.
      gradient_bytes: Bytes per chip of the gradient.
    """
    totals = collections.Counter()
    for equation, path, times in equations(jaxpr, "tpu", kernels=False):
        name = equation.primitive.name
        operands = [v.aval for v in equation.invars]
        results = [v.aval for v in equation.outvars]
        kind, size = path_kind(path), 0
        if name == "conv_general_dilated":
            kind, kernel = _convolution(equation, path)
            size = sum(_bytes(a, chips) for a in (*operands, *results) if a is not kernel)
            size += _bytes(kernel, 1)
        elif name == "dot_general" and kind != "loss":
            # Arrays with two axes are kernels, which every chip has.
            size = sum(_bytes(a, 1 if a.ndim == 2 else chips) for a in (*operands, *results))
        elif name == "pallas_call":
            size = sum(_bytes(a, chips) for a in (*operands, *results))
        elif name in ("reduce_window_max", "select_and_scatter_add"):
            kind, size = "pooling", sum(_bytes(a, chips) for a in (*operands, *results))
        elif name == "reduce_sum" and kind == "norms" and "transpose(" not in path:
            if operands[0].ndim > 1:
                size = _NORM_READS * itemsize * operands[0].size // chips // _NORM_SUMS
        elif name in ("add", "add_any") and kind == "other layers":
            left, right = (a.shape for a in operands)
            size = _bytes(results[0], chips) if left == right and len(left) > 3 else 0
        totals[kind] += times * size
    totals["optimizer"] += 2 * state_bytes + gradient_bytes
    if chips > 1:
        totals["collectives"] += 2 * gradient_bytes
    return {kind: totals[kind] for kind in KINDS if totals[kind]}


def _bytes(aval: jax.core.AbstractValue, parts: int) -> int:
    return aval.size * aval.dtype.itemsize // parts


def _convolution(equation: core.JaxprEqn, path: str) -> tuple[str, jax.core.AbstractValue]:
    """Returns the kind of a convolution, and which of its three arrays is the kernel."""
    _, right, result = (v.aval for v in itertools.chain(equation.invars, equation.outvars))
    numbers = equation.params["dimension_numbers"]
    window = math.prod(right.shape[i] for i in numbers.rhs_spec[2:])
    output = math.prod(result.shape[i] for i in numbers.out_spec[2:])
    is_filter = "transpose(" in path and window > output
    if "/block/" in path:
        kind = "blocks"
    elif "transpose(" not in path:
        kind = "convolutions, forward"
    else:
        kind = f"convolutions, {'filter' if is_filter else 'input'} gradient"
    return kind, result if is_filter else right
