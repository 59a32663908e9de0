"""The memory traffic and the communication of a compiled program, by kind of operation."""

import collections
import math
import re

from nonlocal_jax.hlo import Computation, Instruction, Program, Shape

KINDS = (
    "convolutions, forward",
    "convolutions, input gradient",
    "convolutions, filter gradient",
    "norms",
    "blocks",
    "pooling",
    "other layers",
    "loss",
    "optimizer",
    "collectives",
    "copies",
)

# What a chip of a group of n sends, relative to the larger one of the operand and the result.
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
    "send": lambda n: 1.0,  # to another slice
}
_COLLECTIVE = re.compile(rf"({'|'.join(_SENT)})(-start)?$")
_TRANSFER = re.compile(r"(copy|slice|dynamic-slice)-(start|done)|bitcast|get-tuple-element")


def kind(program: Program, computation: Computation, instruction: Instruction) -> str:
    """Returns what an instruction is part of, see ``KINDS``.

    A transfer between HBM and VMEM is part of the instruction that uses the result.
    """
    users = computation.values()
    while _TRANSFER.match(instruction.opcode) or instruction.is_view:
        found = (user for user in users if instruction.name in user.operands)
        instruction = next(found, None)
        if instruction is None:
            return "copies"
    inner = list(program.fused(instruction))
    if any(_COLLECTIVE.match(i.opcode.removesuffix("-done")) for i in inner):
        return "collectives"
    main = next((i for i in inner if i.opcode == "convolution"), instruction)
    if main.opcode == "convolution" and main.op_name.endswith("conv_general_dilated"):
        return _convolution_kind(main)
    if instruction.opcode in ("copy", "transpose", "copy-start", "copy-done"):
        return "copies"
    if any(i.opcode in ("reduce-window", "select-and-scatter") for i in inner):
        return "pooling"
    return path_kind(main.op_name)


def path_kind(path: str) -> str:
    """Returns the kind of an operation that is no convolution, from its path in the program."""
    if "/block/" in path:
        return "blocks"
    if re.search(r"[/_](bn|norm|ln)\d*/", path):
        return "norms"
    if re.search(r"jvp\([A-Z]|/[A-Z]\w*/", path):  # the path of a Flax module
        if not path.endswith("/convert_element_type"):
            return "other layers"
        # Outside of norms, the types of kernels are converted, and of their gradients.
        direction = "filter gradient" if "transpose(" in path else "forward"
        return f"convolutions, {direction}"
    return "loss" if "jvp(" in path else "optimizer"


def _convolution_kind(convolution: Instruction) -> str:
    """The window of a filter gradient is a feature map, and its result a kernel."""
    if "/block/" in convolution.op_name:
        return "blocks"
    if "transpose(" not in convolution.op_name:
        return "convolutions, forward"
    found = re.search(r"window=\{size=([\dx]+)", convolution.attributes)
    window = [int(n) for n in found[1].split("x")] if found else [1]
    labels = re.search(r"dim_labels=\w+->(\w+)", convolution.attributes)[1]
    axes = zip(labels, convolution.shapes[0].sizes, strict=True)
    output = [size for label, size in axes if label.isdigit()]
    is_filter = math.prod(window) > math.prod(output)
    return f"convolutions, {'filter' if is_filter else 'input'} gradient"


def traffic(program: Program) -> dict[str, int]:
    """Returns the bytes that one run reads from and writes to the memory of a chip, by kind."""
    totals = collections.Counter()
    for computation, instruction, times in program.instructions():
        if size := program.hbm_bytes(computation, instruction):
            totals[kind(program, computation, instruction)] += times * size
    return {name: totals[name] for name in KINDS if totals[name]}


def collectives(program: Program) -> dict[str, dict[str, float]]:
    """Returns what one chip sends in one run, by the kind of the collective.

    "calls" is the number of calls, and "bytes" what the chip sends to its neighbors, with
    algorithms that send least. "send" goes to other slices.
    """
    calls = {}
    for _, instruction, times in program.instructions():
        for inner in program.fused(instruction):
            if found := _COLLECTIVE.match(inner.opcode):
                channel = re.search(r"channel_id=(\d+)", inner.attributes)
                key = channel[1] if channel else inner.name
                # An asynchronous collective consists of several fusions with one channel.
                before = calls.get((found[1], key), (times, inner))
                calls[found[1], key] = min(times, before[0]), inner
    totals = {}
    for (opcode, _), (times, inner) in calls.items():
        total = totals.setdefault(opcode, {"calls": 0, "bytes": 0.0})
        size = _group_size(inner.attributes)
        result = sum(shape.bytes for shape in _results(inner))
        result *= size if opcode == "reduce-scatter" else 1
        total["calls"] += times
        total["bytes"] += times * result * _SENT[opcode](size)
    return totals


def _results(collective: Instruction) -> tuple[Shape, ...]:
    """The results of a collective. Some that are asynchronous have their operands before them."""
    if collective.opcode == "send":
        return collective.shapes[:1]
    if collective.opcode in ("all-gather-start", "collective-permute-start"):
        number = len(collective.operands)
        return collective.shapes[number : 2 * number]
    return collective.shapes


def _group_size(attributes: str) -> int:
    """Number of devices that take part in a collective."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(axes[name]) for name in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(found[1].split(","))
    return 2
