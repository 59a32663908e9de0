"""Training, the same for every task: the state, the step, the loop, checkpoints and logs."""

from typing import TYPE_CHECKING

from nonlocal_jax._lazy import import_on_use
from nonlocal_jax.tasks import loss_fn
from nonlocal_jax.train.experiment import Experiment, create_experiment
from nonlocal_jax.train.optimizer import create_optimizer
from nonlocal_jax.train.state import TrainState, create_state
from nonlocal_jax.train.step import make_train_step

if TYPE_CHECKING:
    from nonlocal_jax.train.checkpoint import Checkpoints
    from nonlocal_jax.train.compile import compile_evaluation, compile_train_step
    from nonlocal_jax.train.log import NonFiniteError
    from nonlocal_jax.train.loop import Result, train

__all__ = [
    "Checkpoints",
    "Experiment",
    "NonFiniteError",
    "Result",
    "TrainState",
    "compile_evaluation",
    "compile_train_step",
    "create_experiment",
    "create_optimizer",
    "create_state",
    "loss_fn",
    "make_train_step",
    "train",
]

# The train step needs only jax, flax, optax and ml_collections.
import_on_use(
    globals(),
    {
        "Checkpoints": "checkpoint",
        "NonFiniteError": "log",
        "Result": "loop",
        "compile_evaluation": "compile",
        "compile_train_step": "compile",
        "train": "loop",
    },
)
