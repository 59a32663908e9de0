"""The cases of the benchmark: operations, blocks and networks, and their variants."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from nonlocal_jax import ops


class Operation(NamedTuple):
    """A function of ``nonlocal_jax.ops``.

    Attributes:
      function: Computes the operation.
      wide: For each argument, True for features ``[..., N, C]`` and False for scores ``[..., N]``.
      pairwise: The key of ``ops.IMPLEMENTATIONS`` that ``implementation`` chooses from, or None if
        the operation has only one implementation.
      temperature: The logits are scaled by 1 / (sqrt(C) * temperature). If None, they are not.
    """

    function: Callable[..., jax.Array]
    wide: tuple[bool, ...]
    pairwise: str | None
    temperature: float | None = None

    def shapes(self, *shape: int) -> list[tuple[int, ...]]:
        """Returns the shapes of the arguments for features of shape ``[..., N, C]``."""
        return [shape if wide else shape[:-1] for wide in self.wide]

    def options(self, channels: int) -> dict[str, float]:
        """Returns the keyword arguments that depend on the number of channels."""
        if self.temperature is None:
            return {}
        return {"scale": channels**-0.5 / self.temperature}


OPERATIONS = {
    "softmax_attention": Operation(
        ops.softmax_attention, (True, True, True), "softmax_attention", temperature=1.0
    ),
    "dot_product": Operation(ops.dot_product, (True, True, True), "dot_product"),
    "concatenation": Operation(ops.concatenation, (False, False, True), "concatenation"),
    "disentangled": Operation(
        ops.disentangled, (True, True, True, False), "softmax_attention", temperature=0.05
    ),
    "context_pool": Operation(ops.context_pool, (True, False), None),
}
# The values are keys of ``models.build.BLOCKS``.
BLOCKS = {
    "nonlocal_block": "nonlocal",
    "disentangled_block": "disentangled_nonlocal",
    "global_context_block": "global_context",
}
# The values are the backbone and the head in the names of ``nonlocal_jax.configs.segmentation``.
NETWORKS = {
    f"{backbone}_{head}": (f"{backbone}-d8", {"gc": "gcnet"}.get(head, head))
    for backbone in ("r50", "r101")
    for head in ("nonlocal", "dnl", "gc")
}
# The values are names in ``nonlocal_jax.configs.video``.
VIDEO_NETWORKS = {"r50_nl_i3d": "mmaction2_i3d_nl_embedded_gaussian_r50_32f"}
DTYPES = ("float32", "bfloat16")

# Variants that materialize the N x N matrix, how many such matrices they keep for the gradient, and
# the largest share of memory that the matrices may take.
_DENSE = ("ours_dense", "torch_eager", "torch_compile")
_MATRICES = 3
_SHARE = 0.5


class Program(NamedTuple):
    """A variant of a case, compiled.

    Attributes:
      run: Starts one call.
      wait: Waits for the result of a call.
    """

    run: Callable[[], object]
    wait: Callable[[object], object]


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation, block or network at one size.

    Attributes:
      name: A key of ``OPERATIONS``, ``BLOCKS``, ``NETWORKS`` or ``VIDEO_NETWORKS``.
      size: (height, width) of the feature map, or of the images of a network. (frames, height,
        width) of the clips of a video network.
      batch_size: Number of images or clips.
      channels: Number of channels of an operation's arguments. A block has twice as many. For a
        network, the number of channels of its first stage.
      dtype: Type of the computation.
      backward: Whether all gradients are computed too. For a network, whether it is a train step.
      std: Standard deviation of the features of an operation or a block.
    """

    name: str
    size: tuple[int, ...]
    batch_size: int
    channels: int
    dtype: str
    backward: bool
    std: float = 0.25

    @property
    def is_network(self) -> bool:
        return self.name in NETWORKS or self.is_video

    @property
    def is_video(self) -> bool:
        return self.name in VIDEO_NETWORKS

    @property
    def positions(self) -> int:
        """The number of positions N that the operation, or the first block of a network, sees."""
        stride = 8 if self.is_network else 1
        return math.prod(-(-n // stride) for n in self.size)

    @property
    def mode(self) -> str:
        names = ("inference", "train") if self.is_network else ("forward", "forward+backward")
        return names[self.backward]

    @property
    def pairwise(self) -> str | None:
        """The key of ``ops.IMPLEMENTATIONS`` of the operation inside, or None for linear ones."""
        if self.name in OPERATIONS:
            return OPERATIONS[self.name].pairwise
        linear = self.name == "global_context_block" or self.name.endswith("_gc")
        return None if linear else "softmax_attention"

    def variants(self) -> list[str]:
        """Returns all variants: ``ours``, ``ours_IMPLEMENTATION`` and PyTorch's."""
        ours = [f"ours_{name}" for name in ops.IMPLEMENTATIONS.get(self.pairwise, ())]
        special = {"softmax_attention": ["torch_sdpa"], "dot_product": ["torch_reassociated"]}
        torch = ["torch_eager", "torch_compile", *special.get(self.pairwise, [])]
        return ["ours", *ours, *torch]

    def describe(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {**dataclasses.asdict(self), "positions": self.positions, "mode": self.mode}

    def exceeds(self, variant: str, memory: int) -> bool:
        """Returns whether the N x N matrices of a variant take too much of ``memory`` bytes."""
        if self.pairwise is None or variant not in _DENSE:
            return False
        keys = self.positions // 4 if self.is_video else self.positions  # pooled
        return _MATRICES * 4 * self.batch_size * self.positions * keys > _SHARE * memory


def feature_map(positions: int) -> tuple[int, int]:
    """Returns the (height, width) with this number of positions that is closest to a square."""
    height = next(n for n in range(math.isqrt(positions), 0, -1) if positions % n == 0)
    return height, positions // height
