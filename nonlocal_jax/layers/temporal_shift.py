"""The temporal shift as a layer that can process a stream of frames."""

import flax.linen as nn
import jax

from nonlocal_jax import ops
from nonlocal_jax.ops.shift import Shift


class TemporalShift(nn.Module):
    """Applies ``ops.temporal_shift`` to clips ``[B, T, *S, C]``. It has no parameters.

    With ``mutable=["stream"]``, the variable "previous" of the collection "stream" is set to the
    shifted channels of the last frame, ``[B, *S, F]``. The next call continues the clip from there
    if it gets this collection. Otherwise the collection does not exist. See ``models.stream``.

    Attributes:
      direction: "both", or "past" for a stream.
      division: The number C / F.
    """

    direction: Shift = "both"
    division: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[B, T, *S, C]`` to the same shape."""
        previous = self.get_variable("stream", "previous")
        if self.is_mutable_collection("stream") and not self.is_initializing():
            fold = x.shape[-1] // self.division
            self.put_variable("stream", "previous", x[:, -1, ..., :fold])
        options = {"direction": self.direction, "division": self.division}
        return ops.temporal_shift(x, previous=previous, **options)
