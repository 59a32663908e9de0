"""The operations by name, with the shapes of their arguments."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from nonlocal_jax import ops


class Operation(NamedTuple):
    """A function of ``nonlocal_jax.ops``.

    Attributes:
      function: of arrays; takes ``implementation`` unless it has one form.
      channels: of each argument, whether it is ``[..., N, C]``; if not, scores ``[..., N]``.
      temperature: divides the scale 1/sqrt(C) of the logits; None for a function without a scale.
      forms: whether it has more than one.
    """

    function: Callable[..., jax.Array]
    channels: tuple[bool, ...]
    temperature: float | None = None
    forms: bool = True

    def shapes(self, *shape: int) -> list[tuple[int, ...]]:
        """Of the arguments, for features of this ``[..., N, C]``."""
        return [shape if wide else shape[:-1] for wide in self.channels]

    def options(self, channels: int) -> dict[str, float]:
        """Keyword arguments that follow from the number of channels."""
        if self.temperature is None:
            return {}
        return {"scale": channels**-0.5 / self.temperature}


OPERATIONS = {
    "softmax_attention": Operation(ops.softmax_attention, (True, True, True), temperature=1.0),
    "dot_product": Operation(ops.dot_product, (True, True, True)),
    "concatenation": Operation(ops.concatenation, (False, False, True)),
    "disentangled": Operation(ops.disentangled, (True, True, True, False), temperature=0.05),
    "context_pool": Operation(ops.context_pool, (True, False), forms=False),
}
