"""Training: loss, optimizer, one jitted step, the loop, checkpoints and logs."""

from typing import TYPE_CHECKING

from nonlocal_jax import lazy
from nonlocal_jax.sharding import make_mesh, to_global
from nonlocal_jax.train.loss import loss_fn
from nonlocal_jax.train.optimizer import create_optimizer
from nonlocal_jax.train.state import TrainState, create_state
from nonlocal_jax.train.step import make_train_step

if TYPE_CHECKING:
    from nonlocal_jax.train.checkpoint import Checkpoints
    from nonlocal_jax.train.log import NonFiniteError
    from nonlocal_jax.train.loop import Result, train

__all__ = [
    "Checkpoints",
    "NonFiniteError",
    "Result",
    "TrainState",
    "create_optimizer",
    "create_state",
    "loss_fn",
    "make_mesh",
    "make_train_step",
    "to_global",
    "train",
]

# The step alone needs jax, flax, optax and ml_collections alone.
__getattr__, __dir__ = lazy.names(
    __name__,
    {
        "checkpoint": ("Checkpoints",),
        "log": ("NonFiniteError",),
        "loop": ("Result", "train"),
    },
)
