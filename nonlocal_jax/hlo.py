"""Reads the text of a compiled program, and counts the bytes that its instructions move.

The text is that of ``jax.stages.Compiled.as_text()`` for a TPU. It names the memory of every array:
``S(1)`` marks the vector memory (VMEM) of the core. All other arrays are in the memory of the chip
(HBM). The compiler's own estimate, "bytes accessed" of ``cost_analysis()``, adds the accesses of
both, counts the body of a loop once, and gives no kinds.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

# For the shapes of the operands and results of a kernel, how often it moves each of them.
KernelPasses = Mapping[tuple[tuple[int, ...], ...], tuple[float, ...]]

_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?(\S+) = (.*)")
# Instructions that move nothing, or whose bytes the matching "-start" has counted.
_FREE = re.compile(
    "parameter|constant|get-tuple-element|tuple|bitcast|after-all|opt-barrier|partition-id|"
    "replica-id|iota|domain|add-dependency|async-update|async-done|call-done"
)
_SLICES = ("slice", "dynamic-slice", "gather")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of the program: its bytes, padded to the tiles of its layout, and where it is."""

    text: str

    @property
    def sizes(self) -> list[int]:
        """Sizes of the axes."""
        return [int(n.lstrip("<=")) for n in _SHAPE.match(self.text)[2].split(",") if n]

    @functools.cached_property
    def bytes(self) -> int:
        """Number of bytes, in any memory."""
        dtype, _, layout = _SHAPE.match(self.text).groups()
        sizes = self.sizes
        order, _, rest = (layout or "").partition(":")
        if tile := re.match(r"T\(([\d,]+)\)", rest):
            tile = [int(n) for n in tile[1].split(",")]
            major_to_minor = [int(axis) for axis in order.split(",") if axis][::-1]
            for axis, n in zip(major_to_minor[-len(tile) :], tile[-len(sizes) :], strict=False):
                sizes[axis] = -(-sizes[axis] // n) * n
        bits = re.search(r"\d+", dtype)
        return math.prod(sizes) * (int(bits[0]) if bits else 8) // 8

    @property
    def in_hbm(self) -> bool:
        return re.search(r"S\([1-9]", self.text) is None

    @property
    def hbm_bytes(self) -> int:
        """Number of bytes in the memory of the chip."""
        return self.bytes if self.in_hbm else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation."""

    name: str
    shapes: tuple[Shape, ...]  # of a tuple, those of its elements
    opcode: str
    arguments: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """The names of the instructions that this one reads."""
        return tuple(re.findall(r"%([^\s,()]+)", self.arguments))

    @functools.cached_property
    def op_name(self) -> str:
        """Path of the JAX operation, such as ``jit(f)/jvp(Net)/conv1/conv_general_dilated``."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def is_view(self) -> bool:
        """Whether the result is the memory of the operands, side by side."""
        return 'custom_call_target="ConcatBitcast"' in self.attributes

    def called(self, attribute: str) -> str:
        """The computation that an attribute names, such as ``body``."""
        return re.search(rf"\b{attribute}=%?([^\s,]+)", self.attributes)[1]

    @property
    def branches(self) -> list[str]:
        """The computations of a condition."""
        if found := re.search(r"branch_computations=\{([^}]*)\}", self.attributes):
            return re.findall(r"%([^\s,]+)", found[1])
        return [self.called("true_computation"), self.called("false_computation")]


Computation = dict[str, Instruction]


def _closing(text: str) -> int:
    """The index behind the parenthesis that closes the first one of the text."""
    depth = 0
    for i, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == ")" and not depth:
            return i + 1
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")


def _parse_instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    root, name, rest = found.groups()
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    rest = rest[len(opcode) :]
    end = _closing(rest)
    return Instruction(
        name=name,
        shapes=tuple(Shape(match[0]) for match in _SHAPE.finditer(kind)),
        opcode=opcode,
        arguments=rest[1 : end - 1],
        attributes=rest[end:],
        is_root=bool(root),
    )


class Program:
    """A compiled program, parsed from its text.

    Args:
      text: Its text.
      kernels: How often its Pallas kernels move their arrays, see ``models.count.kernel_passes``.
    """

    def __init__(self, text: str, kernels: KernelPasses = MappingProxyType({})):
        self._kernels = kernels
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        for line in text.splitlines():
            if line.endswith("{") and " -> " in line:
                entry, name = re.match(r"(ENTRY )?%?(\S+)", line).groups()
                self.entry = name if entry else self.entry
                current = self.computations[name] = {}
            elif line.startswith("  ") and (instruction := _parse_instruction(line)):
                current[instruction.name] = instruction

    def instructions(
        self, name: str | None = None, times: int = 1
    ) -> Iterator[tuple[Computation, Instruction, int]]:
        """Yields what the core executes, each with its computation and how often it runs.

        Instructions inside of a fusion are part of it. Of the branches of a condition, all count.
        """
        computation = self.computations[name or self.entry]
        for instruction in computation.values():
            match instruction.opcode:
                case "while":
                    n = times * self._trip_count(instruction)
                    yield from self.instructions(instruction.called("body"), n)
                case "conditional":
                    for branch in instruction.branches:
                        yield from self.instructions(branch, times)
                case "call" | "call-start":  # the latter on a SparseCore
                    yield from self.instructions(instruction.called("to_apply"), times)
                case "async-start":
                    yield from self.instructions(instruction.called("calls"), times)
                case opcode if not _FREE.fullmatch(opcode) and not instruction.is_view:
                    yield computation, instruction, times

    def _trip_count(self, loop: Instruction) -> int:
        """The iterations of a loop from 0, one if its condition compares with no constant."""
        condition = self.computations[loop.called("condition")]
        constants = (i.arguments for i in condition.values() if i.opcode == "constant")
        return max((int(text) for text in constants if text.isdigit()), default=1)

    def fused(self, instruction: Instruction) -> Iterator[Instruction]:
        """Yields an instruction, and those inside of it if it is a fusion."""
        yield instruction
        if instruction.opcode == "fusion":
            for inner in self.computations[instruction.called("calls")].values():
                yield from self.fused(inner)

    def hbm_bytes(self, computation: Computation, instruction: Instruction) -> int:
        """Returns the bytes that one execution reads from HBM and writes to it.

        A slice reads what it returns, and an update in place writes what it changes. A Pallas
        kernel can read an array more than once.
        """
        opcode = instruction.opcode
        if 'custom_call_target="AllocateBuffer"' in instruction.attributes:
            return 0  # memory that a loop writes part by part
        if opcode == "custom-call":
            read = (shape for name in instruction.operands for shape in computation[name].shapes)
            arrays = (*read, *instruction.shapes)
            if passes := self._kernels.get(tuple(tuple(array.sizes) for array in arrays)):
                moved = (n * array.hbm_bytes for n, array in zip(passes, arrays, strict=True))
                return round(sum(moved))
        if opcode.endswith(("-done", "-update")):
            return sum(shape.hbm_bytes for shape in instruction.shapes)
        total = 0
        for i, name in enumerate(instruction.operands):
            shapes = computation[name].shapes
            full = sum(shape.hbm_bytes for shape in shapes)
            total += min(full, self._read(instruction, i, full))
        if not opcode.endswith("-start"):
            total += self._written(computation, instruction)
        return total

    def _read(self, instruction: Instruction, operand: int, full: int) -> int:
        """The bytes that an instruction reads of an operand of ``full`` bytes."""
        opcode = instruction.opcode
        if opcode in _SLICES:
            return sum(shape.bytes for shape in instruction.shapes) if operand == 0 else full
        if opcode in ("slice-start", "dynamic-slice-start"):
            return instruction.shapes[1].bytes if operand == 0 else full
        if opcode in ("dynamic-update-slice", "scatter") and operand == 0:
            return 0
        if opcode != "fusion":
            return full
        inside = self.computations[instruction.called("calls")]
        parameter = next(
            i.name
            for i in inside.values()
            if i.opcode == "parameter" and i.arguments == str(operand)
        )
        return self._read_inside(inside, parameter, full)

    def _read_inside(self, inside: Computation, name: str, full: int) -> int:
        total = 0
        for user in inside.values():
            for i, operand in enumerate(user.operands):
                if operand == name:
                    # The root of a fusion is a view that the fusion around it reads.
                    if user.opcode in ("bitcast", "reshape") and not user.is_root:
                        total += self._read_inside(inside, user.name, full)
                    else:
                        total += self._read(user, i, full)
        return total

    def _written(self, computation: Computation, instruction: Instruction) -> int:
        shapes = instruction.shapes
        if instruction.opcode == "dynamic-update-slice":
            update = computation[instruction.operands[1]].shapes[0]
            return update.bytes if shapes[0].in_hbm else 0
        if instruction.opcode != "fusion":
            return sum(shape.hbm_bytes for shape in shapes)
        inside = self.computations[instruction.called("calls")]
        root = next(i for i in inside.values() if i.is_root)
        roots = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
        if len(roots) != len(shapes):  # the root is a fusion of several results
            return sum(shape.hbm_bytes for shape in shapes)
        total = 0
        for shape, result in zip(shapes, roots, strict=True):
            while result.opcode == "bitcast":
                result = inside[result.operands[0]]
            size = shape.hbm_bytes
            if result.opcode == "dynamic-update-slice":
                size = min(size, inside[result.operands[1]].shapes[0].bytes)
            total += size
        return total
