"""What is measured, and the forms that it is measured in."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from nonlocal_jax import ops

# By name: the block as in ``models.build.BLOCKS``.
BLOCKS = {
    "nonlocal_block": "nonlocal",
    "disentangled_block": "disentangled_nonlocal",
    "global_context_block": "global_context",
}
# By name: backbone and head as in the names of ``configs.segmentation``.
NETWORKS = {
    f"{backbone}_{head}": (f"{backbone}-d8", {"gc": "gcnet"}.get(head, head))
    for backbone in ("r50", "r101")
    for head in ("nonlocal", "dnl", "gc")
}
DTYPES = ("float32", "bfloat16")

# N x N matrices that a dense form keeps for its gradient, and the share of memory they may take.
_MATRICES = 3
_SHARE = 0.5


class Program(NamedTuple):
    """One form of a case, ready to run.

    Attributes:
      run: starts one call.
      wait: waits for the result of a call.
    """

    run: Callable[[], object]
    wait: Callable[[object], object]


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation, block or network at one size.

    Attributes:
      name: of the operation, block or network.
      size: (height, width) of the feature map, or of a network's images.
      batch_size: images.
      channels: of an operation's arguments, which are half of a block's; width of a network.
      dtype: of the computation.
      backward: with the gradient of everything; of a network, the train step.
      std: standard deviation of the features of an operation or block.
    """

    name: str
    size: tuple[int, int]
    batch_size: int
    channels: int
    dtype: str
    backward: bool
    std: float

    @property
    def is_network(self) -> bool:
        return self.name in NETWORKS

    @property
    def positions(self) -> int:
        """N, of a network those of the map that its block sees."""
        stride = 8 if self.is_network else 1
        return math.prod(-(-n // stride) for n in self.size)

    @property
    def mode(self) -> str:
        names = ("inference", "train") if self.is_network else ("forward", "forward+backward")
        return names[self.backward]

    @property
    def pairwise(self) -> str | None:
        """The operation of ``ops.IMPLEMENTATIONS`` inside, or None where nothing is pairwise."""
        if self.name in ops.IMPLEMENTATIONS:
            return self.name
        linear = self.name.endswith("_gc") or self.name in ("context_pool", "global_context_block")
        return None if linear else "softmax_attention"

    def forms(self) -> list[str]:
        """All forms: ours (what "auto" chooses), ours by the name of each, those of PyTorch."""
        ours = [f"ours_{form}" for form in ops.IMPLEMENTATIONS.get(self.pairwise, ())]
        peers = {"softmax_attention": ["torch_sdpa"], "dot_product": ["torch_reassociated"]}
        torch = ["torch_eager", "torch_compile", *peers.get(self.pairwise, [])]
        return ["ours", *ours, *torch]

    def describe(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**dataclasses.asdict(self), "positions": self.positions, "mode": self.mode}

    def exceeds(self, form: str, memory: int) -> bool:
        """Whether the N x N matrices of a form take too much of so many bytes of memory."""
        dense = self.pairwise and form in ("ours_dense", "torch_eager", "torch_compile")
        matrices = _MATRICES * 4 * self.batch_size * self.positions**2
        return bool(dense) and matrices > _SHARE * memory


def feature_map(positions: int) -> tuple[int, int]:
    """The (height, width) of this many positions that is nearest to a square."""
    height = next(n for n in range(math.isqrt(positions), 0, -1) if positions % n == 0)
    return height, positions // height
