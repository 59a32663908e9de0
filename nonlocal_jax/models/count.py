"""Counts the multiply-adds of a function."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

from nonlocal_jax.hlo import KernelPasses


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
      platform: See ``equations``.
    """
    return sum(n * _multiply_adds(equation) for equation, _, n in equations(jaxpr, platform))


def equations(
    jaxpr: core.Jaxpr,
    platform: str | None = None,
    *,
    kernels: bool = True,
    path: str = "",
    times: int = 1,
) -> Iterator[tuple[core.JaxprEqn, str, int]]:
    """Yields the equations of a program and of those inside of it.

    Args:
      jaxpr: The program.
      platform: Platform that the program is compiled for, such as "tpu". It chooses the branch of
        ``jax.lax.platform_dependent``. None: the branch with most multiply-adds.
      kernels: Whether to yield the equations inside of Pallas kernels, instead of the calls.
      path: Prefix of the paths.
      times: How often the program runs.

    Yields:
      An equation, its path, such as ``jvp(Net)/conv1/conv_general_dilated``, and how often it runs.
    """
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inner_path = f"{path}{equation.source_info.name_stack}/"
        if name == "cond":
            branches = _branches(params, platform)
            inner = [max(branches, key=lambda branch: count_jaxpr(branch, platform))]
        else:
            inner = list(core.jaxprs_in_params(params))
        if not inner or (name == "pallas_call" and not kernels):
            yield equation, inner_path + name, times
            continue
        options = {"kernels": kernels, "path": inner_path, "times": times * _repetitions(equation)}
        for program in inner:
            yield from equations(program, platform, **options)


def kernel_passes(jaxpr: core.Jaxpr, platform: str | None = None) -> KernelPasses:
    """Returns how often each Pallas kernel of a program moves its operands and results.

    A kernel moves a block of an array whenever the next point of its grid has another block. For
    example, attention reads the keys again for every block of queries. Kernels whose blocks depend
    on data are left out.

    Args:
      jaxpr: The program.
      platform: See ``equations``.

    Returns:
      Maps the shapes of the operands and results of a kernel to a number for each of them.
    """
    passes = {}
    for equation, _, _ in equations(jaxpr, platform, kernels=False):
        if equation.primitive.name == "pallas_call":
            shapes = tuple(v.aval.shape for v in (*equation.invars, *equation.outvars))
            grid_mapping = equation.params["grid_mapping"]
            mappings = grid_mapping.block_mappings
            if len(mappings) == len(shapes):
                passes[shapes] = tuple(
                    _moved_blocks(mapping, grid_mapping.grid) * _block_size(mapping) / math.prod(s)
                    for mapping, s in zip(mappings, shapes, strict=True)
                )
    return passes


def _moved_blocks(mapping: Any, grid: tuple[int, ...]) -> int:
    """Number of blocks of an array that a kernel moves. The last axis of its grid is fastest."""
    points = np.indices(grid, np.int32).reshape(len(grid), -1)
    indices = jax.vmap(core.jaxpr_as_fun(mapping.index_map_jaxpr))(*points)
    return 1 + int(np.any(np.diff(np.stack(indices)), axis=0).sum())


def _block_size(mapping: Any) -> int:
    return math.prod(getattr(axis, "block_size", 1) for axis in mapping.block_shape)


def _multiply_adds(equation: core.JaxprEqn) -> int:
    if equation.primitive.name == "conv_general_dilated":
        return _convolution_multiply_adds(equation)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
    return 0


def _convolution_multiply_adds(equation: core.JaxprEqn) -> int:
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


def _branches(params: dict[str, Any], platform: str | None) -> list[core.Jaxpr]:
    """The branches of a condition that may run on ``platform``."""
    branches = [branch.jaxpr for branch in params["branches"]]
    platforms = params.get("branches_platforms")
    if platform is None or platforms is None:
        return branches
    # The first that fits is compiled. None is for all other platforms.
    return [branches[next(i for i, p in enumerate(platforms) if p is None or platform in p)]]


def _repetitions(equation: core.JaxprEqn) -> int:
    """How often the inner program of an equation runs."""
    params = equation.params
    match equation.primitive.name:
        case "scan":
            return params["length"]
        case "pallas_call":
            return math.prod(params["grid_mapping"].grid)
        case "shard_map":
            return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1
